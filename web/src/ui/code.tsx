/** A piece of code with colours and a button that copies it. */

import DOMPurify from "dompurify";
import { useLayoutEffect, useRef } from "preact/hooks";
import { highlighted } from "../answer/highlight.ts";
import { visible } from "../answer/visible.ts";
import { copy } from "./state.ts";

/** Code of more characters than this has no colours, which would take long. */
const MOST_COLOURED = 100_000;

export function Code({ text, language, label }: { text: string; language: string; label: string }) {
  const ref = useRef<HTMLElement>(null);
  useLayoutEffect(() => {
    const shown = visible(text);
    ref.current!.replaceChildren(text.length > MOST_COLOURED ? shown : coloured(shown, language));
  }, [text, language]);
  return (
    <div class="code">
      <pre tabIndex={0} role="region" aria-label={label}>
        <code ref={ref} />
      </pre>
      <button type="button" class="copy-code" onClick={() => void copy(text)}>
        Copy
      </button>
    </div>
  );
}

function coloured(text: string, language: string): DocumentFragment {
  const allowed = { ALLOWED_TAGS: ["span"], ALLOWED_ATTR: ["class"], RETURN_DOM_FRAGMENT: true as const };
  return DOMPurify.sanitize(highlighted(text, language), allowed);
}
