/** An answer of the model. */

import { useEffect, useMemo, useState } from "preact/hooks";
import { pretty } from "../answer/json.ts";
import { findMarks, withoutUnfinished } from "../answer/marks.ts";
import { visible } from "../answer/visible.ts";
import { title } from "../api/problems.ts";
import { branch, retry } from "../conversation/answering.ts";
import { current } from "../conversation/store.ts";
import { pathTo } from "../conversation/tree.ts";
import type { AnswerTurn, UserTurn } from "../conversation/types.ts";
import { CallCards } from "./calls.tsx";
import { Code } from "./code.tsx";
import { Grounding } from "./grounding.tsx";
import { IconButton } from "./icons.tsx";
import { Markdown } from "./markdown.tsx";
import { ProblemBox } from "./problem.tsx";
import { announce, copy, dialog } from "./state.ts";
import { Stats } from "./stats.tsx";
import { TokenView } from "./tokens.tsx";

interface AnswerProps {
  id: string;
  turn: AnswerTurn;
  isLast: boolean;
  versions: preact.ComponentChildren;
}

export function AnswerView({ id, turn, isLast, versions }: AnswerProps) {
  const [asTokens, setAsTokens] = useState(false);
  useAnnouncement(turn);
  return (
    <article class="turn answer" aria-label="Answer" aria-busy={turn.state === "running"} data-state={turn.state}>
      {turn.reasoning && <Reasoning turn={turn} />}
      {asTokens ? <TokenView tokens={turn.tokens} /> : <Said turn={turn} />}
      {turn.calls.length > 0 && <CallCards id={id} turn={turn} isLast={isLast} />}
      {turn.problem && <ProblemBox problem={turn.problem} onRetry={() => retry(id, turn)} />}
      {turn.state === "running" && !turn.text && !turn.calls.length && <Waiting />}
      {turn.state === "stopped" && <p class="note">Stopped.</p>}
      {turn.finish === "length" && <p class="note">The answer was cut at its largest number of tokens.</p>}
      {turn.state !== "running" && (
        <Actions id={id} turn={turn} versions={versions} asTokens={asTokens} onTokens={setAsTokens} />
      )}
    </article>
  );
}

function Actions(props: Omit<AnswerProps, "isLast"> & { asTokens: boolean; onTokens: (value: boolean) => void }) {
  const { id, turn } = props;
  return (
    <div class="turn-actions">
      {props.versions}
      <IconButton icon="copy" name="Copy" onClick={() => void copy(turn.text)} />
      <IconButton icon="retry" name="Answer again" onClick={() => retry(id, turn)} />
      <IconButton icon="branch" name="Continue in a new conversation" onClick={() => branch(id, turn.id)} />
      <IconButton icon="code" name="This request as code" onClick={() => (dialog.value = { kind: "code", turnId: turn.id })} />
      {turn.tokens.length > 0 && (
        <button
          type="button"
          class="small-button"
          aria-pressed={props.asTokens}
          onClick={() => props.onTokens(!props.asTokens)}
        >
          Tokens
        </button>
      )}
      <Stats turn={turn} />
    </div>
  );
}

/** Tells screen readers how an answer that they have seen begin has ended. */
function useAnnouncement(turn: AnswerTurn): void {
  const [begun] = useState(turn.state === "running");
  useEffect(() => {
    if (!begun || turn.state === "running") return;
    const ends = { done: `Answer: ${turn.text || "a call"}`, stopped: "Stopped", failed: turn.problem ? title(turn.problem) : "" };
    announce(ends[turn.state]);
  }, [turn.state]);
}

function Waiting() {
  return (
    <p class="waiting" aria-label="Waiting for the first word">
      <span />
      <span />
      <span />
    </p>
  );
}

function Reasoning({ turn }: { turn: AnswerTurn }) {
  return (
    <details class="reasoning">
      <summary>{turn.text || turn.state !== "running" ? "How it came to this" : "Thinking…"}</summary>
      <p dir="auto">{visible(turn.reasoning)}</p>
    </details>
  );
}

function Said({ turn }: { turn: AnswerTurn }) {
  const json = useMemo(() => (turn.state === "running" ? null : pretty(turn.text)), [turn.text, turn.state]);
  if (json !== null) return <Code text={json} language="json" label="The answer as JSON" />;
  if (turn.isJson && turn.text) return <Code text={turn.text} language="json" label="The answer as JSON" />;
  return <Marked turn={turn} />;
}

function Marked({ turn }: { turn: AnswerTurn }) {
  const users = pathTo(current.value, turn.id).filter((each): each is UserTurn => each.role === "user");
  const pictures = users.flatMap((each) => each.pictures);
  const text = turn.state === "running" ? withoutUnfinished(turn.text) : turn.text;
  const marked = useMemo(() => findMarks(text, pictures.length > 0), [text, pictures.length]);
  const latest = users.findLast((each) => each.pictures.length);
  const first = pictures.length - (latest?.pictures.length ?? 0);
  if (!turn.text) return null;
  return (
    <>
      <Markdown turnId={turn.id} marked={marked} />
      <Grounding turnId={turn.id} marks={marked.marks} pictures={pictures} first={first} />
    </>
  );
}
