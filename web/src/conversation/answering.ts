/** Asking, stopping, asking again, and changing what was asked. */

import { signal } from "@preact/signals";
import { stream } from "../api/chat.ts";
import { RequestFailed } from "../api/problems.ts";
import type { CallDelta, Chunk, TokenLogprob, Usage } from "../api/types.ts";
import { dataUrlOf, newId, type Picture } from "../images/pictures.ts";
import { requestBody } from "./body.ts";
import * as store from "./store.ts";
import { added, changed, pathTo } from "./tree.ts";
import type { AnswerTurn, AnyTurn, Call, Conversation, Counts, UserTurn } from "./types.ts";

const SHOWN_EVERY = 40;

/** Keeping a conversation with pictures takes a while, so one whose answer is being written is kept less often. */
const KEPT_EVERY = 3000;

/** What stops each answer that is written now, by the id of its turn. */
export const running = signal<ReadonlyMap<string, AbortController>>(new Map());

/** Adds a turn of the user after `parent` and asks for an answer. */
export function send(id: string, parent: string | null, text: string, pictures: Picture[]): void {
  const turn: UserTurn = { id: newId(), parent, role: "user", text, pictures };
  store.update(id, (before) => ({ ...added(before, turn), title: before.title || titleOf(turn) }));
  void store.keep(id);
  answer(id, turn.id);
}

function titleOf(turn: UserTurn): string {
  const line = turn.text.replace(/<\/?\w+>/g, " ").replace(/\s+/g, " ").trim();
  return line.length > 60 ? `${line.slice(0, 59)}…` : line || "A picture";
}

/** Sends the results of an answer's calls, and asks for the next answer. */
export function sendResults(id: string, turn: AnswerTurn, contents: string[]): void {
  const results = turn.calls.map((call, index) => ({ id: call.id, name: call.name, content: contents[index] ?? "" }));
  const next: AnyTurn = { id: newId(), parent: turn.id, role: "tool", results };
  store.update(id, (before) => added(before, next));
  answer(id, next.id);
}

/** Asks for another answer beside one. */
export function retry(id: string, turn: AnswerTurn): void {
  if (turn.parent) answer(id, turn.parent);
}

/** A conversation of its own with the turns up to one. */
export function branch(id: string, turnId: string): void {
  const from = store.get(id);
  if (!from) return;
  const turns = Object.fromEntries(pathTo(from, turnId).map((turn) => [turn.id, turn]));
  const copy: Conversation = { ...from, id: newId(), updated: Date.now(), turns, chosen: {} };
  store.show(copy);
  void store.keep(copy.id);
}

export function stop(turnId: string): void {
  running.value.get(turnId)?.abort();
}

/** Asks for the answer after a turn. It is written into the conversation, also if another one is shown. */
function answer(id: string, parent: string): void {
  const conversation = store.get(id);
  if (!conversation) return;
  const turn = emptyAnswer(conversation, parent);
  store.update(id, (before) => added(before, turn));
  const controller = new AbortController();
  running.value = new Map(running.value).set(turn.id, controller);
  void write(id, turn, controller.signal).finally(() => {
    running.value = new Map([...running.value].filter(([each]) => each !== turn.id));
    void store.keep(id);
  });
}

function emptyAnswer({ settings }: Conversation, parent: string): AnswerTurn {
  return {
    id: newId(), parent, role: "assistant", model: settings.model, text: "", reasoning: "", calls: [], tokens: [],
    state: "running", isJson: settings.form !== "text", finish: null, counts: null, problem: null, first: null, last: null,
  }; // prettier-ignore
}

async function write(id: string, turn: AnswerTurn, signal: AbortSignal): Promise<void> {
  const draft: AnswerTurn = { ...turn, tokens: [] };
  let isShown = true;
  const show = () => {
    if (!isShown) store.update(id, (before) => changed(before, turn.id, { ...draft, tokens: [...draft.tokens] }), KEPT_EVERY);
    isShown = true;
  };
  const timer = window.setInterval(show, SHOWN_EVERY);
  try {
    const conversation = store.get(id)!;
    const turns = pathTo(conversation, turn.parent!);
    const addresses = await addressesOf(turns);
    const body = requestBody(turns, conversation.settings, (picture) => addresses.get(picture.id) ?? "");
    const started = performance.now();
    for await (const chunk of stream(body, signal)) {
      take(draft, chunk, performance.now() - started);
      isShown = false;
    }
    draft.state = "done";
  } catch (error) {
    draft.state = signal.aborted ? "stopped" : "failed";
    if (!signal.aborted) draft.problem = problemOf(error);
  } finally {
    window.clearInterval(timer);
    isShown = false;
    show();
  }
}

function problemOf(error: unknown): AnswerTurn["problem"] {
  if (error instanceof RequestFailed) return error.problem;
  return { kind: "failed", message: error instanceof Error ? error.message : String(error), retryAfter: null };
}

async function addressesOf(turns: AnyTurn[]): Promise<Map<string, string>> {
  const pictures = turns.flatMap((turn) => (turn.role === "user" ? turn.pictures : []));
  const address = async (each: Picture) => (each.kind === "remote" ? each.url : dataUrlOf(each.blob));
  return new Map(await Promise.all(pictures.map(async (each) => [each.id, await address(each)] as const)));
}

/** Adds a chunk to an answer; `elapsed` is the time since the request in milliseconds. */
function take(draft: AnswerTurn, chunk: Chunk, elapsed: number): void {
  if (chunk.usage) draft.counts = countsOf(chunk.usage);
  const choice = chunk.choices[0];
  if (!choice) return;
  const { content, reasoning_content: reasoning, tool_calls: calls } = choice.delta;
  if (content || reasoning || calls) {
    draft.first ??= elapsed;
    draft.last = elapsed;
  }
  draft.text += content ?? "";
  draft.reasoning += reasoning ?? "";
  for (const delta of calls ?? []) draft.calls = withDelta(draft.calls, delta);
  draft.tokens.push(...(choice.logprobs?.content ?? []).map(tokenOf));
  if (choice.finish_reason) draft.finish = choice.finish_reason;
}

function countsOf({ prompt_tokens: prompt, completion_tokens: answer, prompt_tokens_details: of }: Usage): Counts {
  return { answer, prompt, images: of?.image_tokens ?? 0, cached: of?.cached_tokens ?? 0 };
}

/** A token without its bytes, which are not shown. */
function tokenOf({ token, logprob, top_logprobs: top }: TokenLogprob): TokenLogprob {
  return { token, logprob, top_logprobs: top.map(({ token, logprob }) => ({ token, logprob })) };
}

function withDelta(calls: Call[], delta: CallDelta): Call[] {
  const before = calls[delta.index] ?? { id: "", name: "", arguments: "" };
  const next = [...calls];
  next[delta.index] = {
    id: delta.id ?? before.id,
    name: before.name + (delta.function?.name ?? ""),
    arguments: before.arguments + (delta.function?.arguments ?? ""),
  };
  return next;
}
