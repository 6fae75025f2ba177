/** The tokens of an answer, each with its probability and the tokens that could have stood in its place. */

import { useId, useState } from "preact/hooks";
import type { TokenLogprob } from "../api/types.ts";
import { visible } from "../answer/visible.ts";

export function TokenView({ tokens }: { tokens: TokenLogprob[] }) {
  const [index, setIndex] = useState(-1);
  const id = useId();
  const token = tokens[index];
  return (
    <div class="tokens">
      <div
        class="token-list"
        role="listbox"
        aria-label="Tokens of the answer; the arrow keys go through them"
        tabIndex={0}
        aria-activedescendant={token ? `${id}-${index}` : undefined}
        onKeyDown={(event) => move(event, index, tokens.length, setIndex)}
      >
        {tokens.map((each, number) => (
          <span
            key={number}
            id={`${id}-${number}`}
            role="option"
            aria-selected={number === index}
            class={`token doubt-${doubt(each.logprob)}`}
            onPointerEnter={() => setIndex(number)}
          >
            {shown(each.token)}
          </span>
        ))}
      </div>
      <div class="alternatives" role="status">
        {token ? <Alternatives token={token} /> : <p class="note">Point at a token to see what else was likely.</p>}
      </div>
    </div>
  );
}

function move(event: KeyboardEvent, index: number, length: number, set: (index: number) => void): void {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  const target = { Home: 0, End: length - 1 }[event.key] ?? (step ? index + step : null);
  if (target === null) return;
  event.preventDefault();
  set(Math.max(0, Math.min(length - 1, target)));
}

function Alternatives({ token }: { token: TokenLogprob }) {
  const isListed = token.top_logprobs.some((each) => each.token === token.token);
  const all = isListed ? token.top_logprobs : [...token.top_logprobs, token];
  return (
    <table>
      <caption>
        “{shown(token.token)}” with {percent(token.logprob)}
      </caption>
      <tbody>
        {all.map((each, index) => (
          <tr key={index} class={each.token === token.token ? "is-drawn" : ""}>
            <th scope="row">{shown(each.token)}</th>
            <td>
              <span class="bar" style={{ width: `${100 * Math.exp(each.logprob)}%` }} />
            </td>
            <td>{percent(each.logprob)}</td>
            <td>{each.logprob.toFixed(3)}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function percent(logprob: number): string {
  const share = 100 * Math.exp(logprob);
  return `${share < 0.1 && share > 0 ? "< 0.1" : share.toFixed(1)} %`;
}

/** How unsure the model was of a token: 0 for hardly at all, to 3. */
function doubt(logprob: number): number {
  const share = Math.exp(logprob);
  return share > 0.9 ? 0 : share > 0.6 ? 1 : share > 0.3 ? 2 : 3;
}

/** A token with its white space made visible. */
function shown(token: string): string {
  return visible(token).replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ | $/g, "·") || "∅";
}
