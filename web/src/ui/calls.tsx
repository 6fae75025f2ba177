/** Calls of functions: a card each, and a place for its result. */

import { useState } from "preact/hooks";
import { pretty } from "../answer/json.ts";
import { visible } from "../answer/visible.ts";
import { sendResults } from "../conversation/answering.ts";
import type { AnswerTurn, Call, ToolTurn } from "../conversation/types.ts";
import { Code } from "./code.tsx";
import { Icon } from "./icons.tsx";

export function CallCards({ id, turn, isLast }: { id: string; turn: AnswerTurn; isLast: boolean }) {
  const isWhole = turn.state === "done" && turn.finish === "tool_calls";
  return (
    <div class="calls">
      {isLast && isWhole ? (
        <Answerable id={id} turn={turn} />
      ) : (
        turn.calls.map((call, index) => <CallCard key={index} call={call} />)
      )}
      {turn.state !== "running" && !isWhole && (
        <p class="note">The answer ended within its calls. Do not carry out the last one.</p>
      )}
    </div>
  );
}

function Answerable({ id, turn }: { id: string; turn: AnswerTurn }) {
  const [results, setResults] = useState<string[]>(turn.calls.map(() => ""));
  const submit = (event: Event) => {
    event.preventDefault();
    sendResults(id, turn, results);
  };
  return (
    <form onSubmit={submit}>
      {turn.calls.map((call, index) => (
        <CallCard key={index} call={call}>
          <label class="field">
            Result of {visible(call.name)}
            <textarea
              rows={2}
              placeholder="What your function returns, such as 18 °C, sunny"
              value={results[index]}
              onInput={(event) => setResults(results.with(index, event.currentTarget.value))}
            />
          </label>
        </CallCard>
      ))}
      <button class="button primary" disabled={!results.every((each) => each.trim())}>
        {results.length > 1 ? "Send the results" : "Send the result"}
      </button>
    </form>
  );
}

function CallCard({ call, children }: { call: Call; children?: preact.ComponentChildren }) {
  return (
    <section class="call" aria-label={`Call of ${call.name}`}>
      <h2>
        <Icon name="tool" />
        {visible(call.name)}
      </h2>
      <Code text={pretty(call.arguments) ?? call.arguments} language="json" label={`Arguments of ${call.name}`} />
      {children}
    </section>
  );
}

export function Results({ results }: { results: ToolTurn["results"] }) {
  return (
    <>
      {results.map((result, index) => (
        <section key={index} class="call result" aria-label={`Result of ${result.name}`}>
          <h2>
            <Icon name="check" />
            Result of {visible(result.name)}
          </h2>
          <p dir="auto">{visible(result.content)}</p>
        </section>
      ))}
    </>
  );
}
