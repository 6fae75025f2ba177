/** Fields of forms: each with its label, a hint, and what is wrong with its value. */

import { useId, useState } from "preact/hooks";
import type { ComponentChildren } from "preact";
import { type NumberName, RANGES, wrongNumber } from "../conversation/settings.ts";
import { current, updateSettings } from "../conversation/store.ts";

/** A number of the settings. What is typed is taken as soon as it is in range; an empty field leaves it to the server. */
export function NumberField({ name, label, hint }: { name: NumberName; label: string; hint: string }) {
  const value = current.value.settings[name];
  const [typed, setTyped] = useState<string | null>(null);
  const id = useId();
  const text = typed ?? (value === null ? "" : String(value));
  const wrong = wrongNumber(name, text);
  const onInput = (text: string) => {
    setTyped(text);
    if (!wrongNumber(name, text)) updateSettings({ [name]: text.trim() ? Number(text) : null });
  };
  return (
    <div class="field">
      <label for={id}>{label}</label>
      <input
        id={id}
        inputMode={RANGES[name].isWhole ? "numeric" : "decimal"}
        placeholder="default"
        value={text}
        aria-invalid={wrong !== ""}
        aria-describedby={`${id}-hint`}
        onInput={(event) => onInput(event.currentTarget.value)}
        onBlur={() => !wrong && setTyped(null)}
      />
      <Hint id={`${id}-hint`} hint={hint} wrong={wrong} />
    </div>
  );
}

export function Hint({ id, hint, wrong }: { id: string; hint: string; wrong: string }) {
  return (
    <p id={id} class={wrong ? "wrong" : "note"}>
      {wrong || hint}
    </p>
  );
}

export function TextField(props: {
  label: string;
  value: string;
  onInput: (text: string) => void;
  hint?: string;
  wrong?: string;
  rows?: number;
  placeholder?: string;
  isCode?: boolean;
}) {
  const id = useId();
  const shared = {
    id,
    value: props.value,
    placeholder: props.placeholder ?? "",
    spellcheck: !props.isCode,
    class: props.isCode ? "is-code" : "",
    "aria-invalid": Boolean(props.wrong),
    "aria-describedby": `${id}-hint`,
    onInput: (event: { currentTarget: { value: string } }) => props.onInput(event.currentTarget.value),
  };
  return (
    <div class="field">
      <label for={id}>{props.label}</label>
      {props.rows ? <textarea rows={props.rows} {...shared} /> : <input {...shared} />}
      <Hint id={`${id}-hint`} hint={props.hint ?? ""} wrong={props.wrong ?? ""} />
    </div>
  );
}

export function Choice(props: {
  label: string;
  value: string;
  options: readonly (readonly [value: string, text: string])[];
  onChange: (value: string) => void;
}) {
  const id = useId();
  return (
    <div class="field">
      <label for={id}>{props.label}</label>
      <select id={id} value={props.value} onChange={(event) => props.onChange(event.currentTarget.value)}>
        {props.options.map(([value, text]) => (
          <option key={value} value={value}>
            {text}
          </option>
        ))}
      </select>
    </div>
  );
}

export function Section(props: { title: string; isOpen?: boolean; children: ComponentChildren }) {
  return (
    <details class="section" open={props.isOpen ?? false}>
      <summary>{props.title}</summary>
      {props.children}
    </details>
  );
}
