/** Reads conversations from a file. It may come from anyone, so every part of it is checked. */

import type { TokenLogprob } from "../api/types.ts";
import { blobOf, fromFile, newId, type Picture } from "../images/pictures.ts";
import { FORMAT, VERSION } from "./export.ts";
import { DEFAULTS } from "./settings.ts";
import type { AnswerTurn, AnyTurn, Conversation, Counts, Settings } from "./types.ts";

/** Said of a file that has no conversations of this page. */
export class NotImported extends Error {}

type Raw = Record<string, unknown>;
type Ids = Map<string, string>;

/** The conversations of a file, under new ids. Throws NotImported, or NotAPicture for a picture that is none. */
export async function imported(text: string): Promise<Conversation[]> {
  const file = object(parsed(text));
  if (file["format"] !== FORMAT) throw new NotImported("The file has no conversations of this page.");
  if (file["version"] !== VERSION) throw new NotImported("The file was written by another version of this page.");
  return Promise.all(list(file["conversations"]).map((each) => conversation(object(each))));
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw new NotImported("The file is not JSON.");
  }
}

async function conversation(raw: Raw): Promise<Conversation> {
  const turns: Record<string, AnyTurn> = {};
  const ids: Ids = new Map([["", ""]]);
  for (const each of list(raw["turns"])) {
    const turn = await readTurn(object(each), ids);
    turns[turn.id] = turn;
  }
  const chosen = Object.entries(object(raw["chosen"])).map(([from, to]) => [idOf(from, ids), idOf(to, ids)]);
  return {
    id: newId(),
    title: string(raw["title"]),
    updated: number(raw["updated"]),
    settings: settings(object(raw["settings"])),
    turns,
    chosen: Object.fromEntries(chosen) as Record<string, string>,
  };
}

function idOf(old: unknown, ids: Ids): string {
  const id = ids.get(string(old));
  if (id === undefined) throw new NotImported("The file is damaged: it names a turn that it does not have.");
  return id;
}

/** A turn under a new id. Its parent must come before it. */
async function readTurn(raw: Raw, ids: Ids): Promise<AnyTurn> {
  const place = { id: newId(), parent: raw["parent"] === null ? null : idOf(raw["parent"], ids) };
  ids.set(string(raw["id"]), place.id);
  if (raw["role"] === "assistant") return { ...place, ...answer(raw) };
  if (raw["role"] === "user") {
    const pictures = await Promise.all(list(raw["pictures"]).map((each) => picture(object(each))));
    return { ...place, role: "user", text: string(raw["text"]), pictures };
  }
  return { ...place, role: "tool", results: list(raw["results"]).map((each) => strings(each, "id", "name", "content")) };
}

async function picture(raw: Raw): Promise<Picture> {
  const url = string(raw["url"]);
  if (/^https?:\/\//i.test(url)) return { kind: "remote", id: newId(), url };
  return fromFile(blobOf(url), string(raw["name"]));
}

function answer(raw: Raw): Omit<AnswerTurn, "id" | "parent"> {
  return {
    role: "assistant",
    ...strings(raw, "model", "text", "reasoning"),
    calls: list(raw["calls"]).map((each) => strings(each, "id", "name", "arguments")),
    tokens: list(raw["tokens"]).map(token),
    state: raw["state"] === "done" ? "done" : "stopped",
    isJson: raw["isJson"] === true,
    finish: optional(raw["finish"], string),
    counts: optional(raw["counts"], counts),
    problem: null,
    first: optional(raw["first"], number),
    last: optional(raw["last"], number),
  };
}

function token(value: unknown): TokenLogprob {
  const raw = object(value);
  const top = list(raw["top_logprobs"]).map((each) => ({ ...strings(each, "token"), logprob: number(object(each)["logprob"]) }));
  return { ...strings(raw, "token"), logprob: number(raw["logprob"]), top_logprobs: top };
}

function counts(value: unknown): Counts {
  const { answer, prompt, images, cached } = object(value);
  return { answer: number(answer), prompt: number(prompt), images: number(images), cached: number(cached) };
}

function settings(raw: Raw): Settings {
  const nullable = (name: keyof Settings) => [name, optional(raw[name], number)];
  return {
    ...DEFAULTS,
    ...strings(raw, "model", "system", "toolChoice", "schema"),
    ...Object.fromEntries((["temperature", "topP", "maxTokens", "seed", "maxTiles"] as const).map(nullable)),
    logprobs: raw["logprobs"] === true,
    topLogprobs: number(raw["topLogprobs"]),
    tools: list(raw["tools"]).map((each) => strings(each, "name", "description", "parameters")),
    form: raw["form"] === "json_schema" || raw["form"] === "json_object" ? raw["form"] : "text",
  };
}

function strings<Name extends string>(value: unknown, ...names: Name[]): Record<Name, string> {
  const raw = object(value);
  return Object.fromEntries(names.map((name) => [name, string(raw[name])])) as Record<Name, string>;
}

function optional<T>(value: unknown, read: (value: unknown) => T): T | null {
  return value === null || value === undefined ? null : read(value);
}

function object(value: unknown): Raw {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw damaged("an object", value);
  return value as Raw;
}

function list(value: unknown): unknown[] {
  if (!Array.isArray(value)) throw damaged("a list", value);
  return value;
}

function string(value: unknown): string {
  if (typeof value !== "string") throw damaged("a text", value);
  return value;
}

function number(value: unknown): number {
  if (typeof value !== "number") throw damaged("a number", value);
  return value;
}

function damaged(needed: string, value: unknown): NotImported {
  return new NotImported(`The file is damaged: it has ${(JSON.stringify(value) ?? "nothing").slice(0, 40)} in place of ${needed}.`);
}
