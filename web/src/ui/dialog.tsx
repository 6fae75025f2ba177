/** A dialog over the page. The browser keeps the focus within it, and Escape closes it. */

import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef } from "preact/hooks";
import { IconButton } from "./icons.tsx";
import { dialog } from "./state.ts";

export function closeDialog(): void {
  dialog.value = null;
}

export function Modal(props: { title: string; wide?: boolean; children: ComponentChildren }) {
  const ref = useRef<HTMLDialogElement>(null);
  const id = useId();
  useEffect(() => {
    const before = document.activeElement;
    ref.current?.showModal();
    return () => before instanceof HTMLElement && before.focus();
  }, []);
  const onClick = (event: MouseEvent) => event.target === ref.current && closeDialog();
  return (
    <dialog ref={ref} class={props.wide ? "wide" : ""} aria-labelledby={id} onClose={closeDialog} onMouseDown={onClick}>
      <header class="dialog-head">
        <h2 id={id}>{props.title}</h2>
        <IconButton icon="close" name="Close" onClick={closeDialog} />
      </header>
      <div class="dialog-body">{props.children}</div>
    </dialog>
  );
}
