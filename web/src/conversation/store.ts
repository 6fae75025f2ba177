/** The conversations that are open, and which one is shown. */

import { computed, signal } from "@preact/signals";
import { newId } from "../images/pictures.ts";
import { DEFAULTS } from "./settings.ts";
import * as storage from "./storage.ts";
import type { AnswerTurn, Conversation, Settings } from "./types.ts";

const SETTINGS = "ternvl.settings";
const SAVE_AFTER = 400;

/** Conversations that are in memory, by id. */
const open = signal<Record<string, Conversation>>({});
const currentId = signal("");

export const heads = signal<storage.Head[]>([]);

/** Why conversations are not kept; empty if they are. */
export const notKept = signal("");

export const current = computed(() => open.value[currentId.value] ?? empty);

/** How each new conversation begins: with the settings of the last one that were changed. */
function newConversation(): Conversation {
  const settings = { ...DEFAULTS, ...lastSettings() };
  return { id: newId(), title: "", updated: Date.now(), settings, turns: {}, chosen: {} };
}

function lastSettings(): Partial<Settings> {
  try {
    return JSON.parse(localStorage.getItem(SETTINGS) ?? "{}") as Partial<Settings>;
  } catch {
    return {};
  }
}

const empty = newConversation();

export function get(id: string): Conversation | undefined {
  return open.value[id];
}

/** Shows a new conversation. One without turns is not kept. */
export function begin(): void {
  show(newConversation());
}

export function show(conversation: Conversation): void {
  open.value = { ...open.value, [conversation.id]: conversation };
  currentId.value = conversation.id;
}

export async function choose(id: string): Promise<void> {
  const found = open.value[id] ?? (await storage.load(id));
  if (found) show(interrupted(found));
  else await refreshHeads();
}

/** A conversation that was closed while an answer was written has that answer as far as it had come. */
function interrupted(conversation: Conversation): Conversation {
  if (open.value[conversation.id]) return conversation;
  const turns = Object.entries(conversation.turns).map(([id, turn]) => {
    const isCut = turn.role === "assistant" && turn.state === "running";
    return [id, isCut ? ({ ...turn, state: "stopped" } satisfies AnswerTurn) : turn];
  });
  return { ...conversation, turns: Object.fromEntries(turns) as Conversation["turns"] };
}

/** Changes an open conversation, and keeps it after some milliseconds. */
export function update(id: string, change: (before: Conversation) => Conversation, milliseconds = SAVE_AFTER): void {
  const before = open.value[id];
  if (!before) return;
  open.value = { ...open.value, [id]: change(before) };
  keepSoon(id, milliseconds);
}

export function updateSettings(change: Partial<Settings>): void {
  const { id } = current.value;
  update(id, (before) => ({ ...before, settings: { ...before.settings, ...change } }));
  try {
    localStorage.setItem(SETTINGS, JSON.stringify(current.value.settings));
  } catch {
    // The settings of the next conversation begin with the defaults; nothing of this one is lost.
  }
}

const waiting = new Map<string, number>();

function keepSoon(id: string, milliseconds: number): void {
  if (!waiting.has(id)) waiting.set(id, window.setTimeout(() => void keep(id), milliseconds));
}

/** Keeps a conversation now. A failure is told in `notKept`; the conversation stays open. */
export async function keep(id: string): Promise<void> {
  window.clearTimeout(waiting.get(id));
  waiting.delete(id);
  const conversation = open.value[id];
  if (!conversation || !Object.keys(conversation.turns).length) return;
  try {
    const head = await storage.save(conversation);
    heads.value = [head, ...heads.value.filter((each) => each.id !== id)].sort((a, b) => b.updated - a.updated);
    notKept.value = "";
  } catch (error) {
    notKept.value = error instanceof Error ? error.message : String(error);
  }
}

export function keepAll(): void {
  for (const id of [...waiting.keys()]) void keep(id);
}

export async function forget(id: string): Promise<void> {
  window.clearTimeout(waiting.get(id));
  waiting.delete(id);
  await storage.remove(id);
  const { [id]: _, ...rest } = open.value;
  open.value = rest;
  await refreshHeads();
  if (currentId.value === id) begin();
}

export async function refreshHeads(): Promise<void> {
  try {
    heads.value = await storage.heads();
  } catch (error) {
    notKept.value = error instanceof Error ? error.message : String(error);
  }
}
