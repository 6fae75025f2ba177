/** What went wrong, where it happened, with a way on. */

import { useEffect, useState } from "preact/hooks";
import { key, setKey } from "../api/http.ts";
import { refreshModels } from "../api/models.ts";
import { type Problem, title } from "../api/problems.ts";
import { visible } from "../answer/visible.ts";
import { Icon } from "./icons.tsx";

export function ProblemBox({ problem, onRetry }: { problem: Problem; onRetry: () => void }) {
  return (
    <section class="problem" aria-label={title(problem)}>
      <Icon name="warning" />
      <div>
        <p>
          <strong>{title(problem)}.</strong> {visible(problem.message)}
        </p>
        {problem.kind === "key" ? <KeyForm onDone={onRetry} /> : <Retry problem={problem} onRetry={onRetry} />}
      </div>
    </section>
  );
}

function Retry({ problem, onRetry }: { problem: Problem; onRetry: () => void }) {
  const left = useCountdown(problem.retryAfter ?? 0);
  return (
    <p class="problem-way">
      <button type="button" class="button" onClick={onRetry}>
        Try again
      </button>
      {left > 0 && <span class="note">The server asks to wait for {left} s.</span>}
    </p>
  );
}

function useCountdown(seconds: number): number {
  const [left, setLeft] = useState(seconds);
  useEffect(() => {
    const timer = window.setInterval(() => setLeft((before) => Math.max(0, before - 1)), 1000);
    return () => window.clearInterval(timer);
  }, []);
  return left;
}

/** Asks for the key of the server. */
export function KeyForm({ onDone }: { onDone: () => void }) {
  const [text, setText] = useState(key.value);
  const submit = (event: Event) => {
    event.preventDefault();
    setKey(text);
    void refreshModels();
    onDone();
  };
  return (
    <form class="key-form" onSubmit={submit}>
      <label>
        API key
        <input
          type="password"
          autocomplete="off"
          spellcheck={false}
          value={text}
          onInput={(event) => setText(event.currentTarget.value)}
        />
      </label>
      <button class="button" disabled={!text.trim()}>
        Use this key
      </button>
      <p class="note">It stays in this tab until the tab is closed, and is sent to this server alone.</p>
    </form>
  );
}
