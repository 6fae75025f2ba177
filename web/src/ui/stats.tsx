/** What an answer took: tokens and times. */

import type { AnswerTurn } from "../conversation/types.ts";

export function Stats({ turn }: { turn: AnswerTurn }) {
  const parts = statsOf(turn);
  return parts.length ? (
    <span class="stats">
      {parts.map(({ text, meaning }) => (
        <span key={text} title={meaning}>
          {text}
        </span>
      ))}
    </span>
  ) : null;
}

function statsOf(turn: AnswerTurn): { text: string; meaning: string }[] {
  const { counts, first } = turn;
  const given: [string | false | undefined | null, string][] = [
    [counts && `${number(counts.answer)} tokens`, "Tokens of the answer"],
    [speed(turn), "Tokens of the answer a second, after the first"],
    [first !== null && `first after ${seconds(first)}`, "Time from the request to the first piece of the answer"],
    [counts && `prompt ${number(counts.prompt)}`, "Tokens of the prompt"],
    [counts?.images ? `${number(counts.images)} of images` : false, "Tokens of the prompt that are images"],
    [counts?.cached ? `${number(counts.cached)} cached` : false, "Tokens of the prompt that the server had computed before"],
  ];
  return given.flatMap(([text, meaning]) => (text ? [{ text, meaning }] : []));
}

/** Milliseconds below which the pieces of an answer arrive together, so that their times say nothing. */
const TOGETHER = 50;

function speed({ counts, first, last }: AnswerTurn): string | false {
  const after = (counts?.answer ?? 0) - 1;
  if (first === null || last === null || last - first < TOGETHER || after < 1) return false;
  const rate = after / ((last - first) / 1000);
  return `${rate < 10 ? rate.toFixed(1) : Math.round(rate)} tokens/s`;
}

function seconds(milliseconds: number): string {
  return milliseconds < 995 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
}

function number(value: number): string {
  return value.toLocaleString("en");
}
