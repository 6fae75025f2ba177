/** The turns of a conversation as a tree: which are shown, and which stand beside each. */

import type { AnyTurn, Conversation } from "./types.ts";

/** The turns that follow one, oldest first; null stands for the beginning. */
export function children(conversation: Conversation, parent: string | null): AnyTurn[] {
  return Object.values(conversation.turns).filter((turn) => turn.parent === parent);
}

/** The turns that are shown, first to last. */
export function path(conversation: Conversation): AnyTurn[] {
  const shown: AnyTurn[] = [];
  for (let next = chosen(conversation, null); next; next = chosen(conversation, next.id)) shown.push(next);
  return shown;
}

function chosen(conversation: Conversation, parent: string | null): AnyTurn | undefined {
  const turns = children(conversation, parent);
  return turns.find((turn) => turn.id === conversation.chosen[parent ?? ""]) ?? turns.at(-1);
}

/** The turns from the first to one, whatever is shown. */
export function pathTo(conversation: Conversation, id: string): AnyTurn[] {
  const found: AnyTurn[] = [];
  for (let turn = conversation.turns[id]; turn; turn = turn.parent ? conversation.turns[turn.parent] : undefined) {
    found.unshift(turn);
  }
  return found;
}

/** The conversation with a turn added and shown. */
export function added(conversation: Conversation, turn: AnyTurn): Conversation {
  return {
    ...conversation,
    updated: Date.now(),
    turns: { ...conversation.turns, [turn.id]: turn },
    chosen: { ...conversation.chosen, [turn.parent ?? ""]: turn.id },
  };
}

/** The conversation with a turn changed. */
export function changed<T extends AnyTurn>(conversation: Conversation, id: string, change: Partial<T>): Conversation {
  const turn = conversation.turns[id];
  if (!turn) return conversation;
  return { ...conversation, updated: Date.now(), turns: { ...conversation.turns, [id]: { ...turn, ...change } as AnyTurn } };
}

/** The conversation with another of the turns beside a turn shown, `step` to the right or, below 0, to the left. */
export function stepped(conversation: Conversation, turn: AnyTurn, step: number): Conversation {
  const beside = children(conversation, turn.parent);
  const next = beside[beside.findIndex((each) => each.id === turn.id) + step];
  return next ? { ...conversation, chosen: { ...conversation.chosen, [turn.parent ?? ""]: next.id } } : conversation;
}
