/** An answer's text, whose marks are linked with what is drawn on the picture. */

import { memo } from "preact/compat";
import { useLayoutEffect, useRef } from "preact/hooks";
import { type Block, blocks, elements } from "../answer/markdown.ts";
import { type Mark, type MarkedText, hasMark, split } from "../answer/marks.ts";
import { visible } from "../answer/visible.ts";
import { copy, pointed } from "./state.ts";

export function Markdown({ turnId, marked }: { turnId: string; marked: MarkedText }) {
  const root = useRef<HTMLDivElement>(null);
  const now = pointed.value;
  useLayoutEffect(() => {
    for (const each of root.current?.querySelectorAll<HTMLElement>(".mark") ?? []) {
      each.classList.toggle("is-pointed", now === `${turnId}:${each.dataset["mark"]}`);
    }
  }, [now, turnId]);
  const on = (event: Event) => {
    const mark = (event.target as Element).closest<HTMLElement>(".mark");
    pointed.value = mark ? `${turnId}:${mark.dataset["mark"]}` : "";
  };
  const off = () => (pointed.value = "");
  return (
    <div class="markdown" ref={root} onPointerOver={on} onPointerLeave={off} onFocusIn={on} onFocusOut={off}>
      {blocks(marked.text).map((block, index) => (
        <BlockView key={index} block={block} marks={marked.marks} />
      ))}
    </div>
  );
}

/** A block is made again only if its text has changed, so a stream leaves what was written, and selected, as it is. */
const BlockView = memo(
  ({ block, marks }: { block: Block; marks: Mark[] }) => {
    const ref = useRef<HTMLDivElement>(null);
    useLayoutEffect(() => ref.current!.replaceChildren(decorated(elements(block), marks)), [block.raw]);
    return <div ref={ref} />;
  },
  (before, after) => before.block.raw === after.block.raw,
);

function decorated(fragment: DocumentFragment, marks: Mark[]): DocumentFragment {
  // A mark within an address leaves none that leads anywhere.
  for (const link of fragment.querySelectorAll("a")) if (hasMark(link.href)) link.removeAttribute("href");
  const walker = document.createTreeWalker(fragment, NodeFilter.SHOW_TEXT);
  const texts: Text[] = [];
  while (walker.nextNode()) texts.push(walker.currentNode as Text);
  for (const text of texts) text.replaceWith(...pieces(text.data, marks));
  for (const each of fragment.querySelectorAll("pre")) each.append(copyButton(each));
  return fragment;
}

function pieces(text: string, marks: Mark[]): (string | Node)[] {
  return split(text).map((piece) => (typeof piece === "string" ? piece : chip(marks[piece]!, piece)));
}

function chip(mark: Mark, number: number): HTMLElement {
  const element = document.createElement(mark.shapes.length ? "button" : "code");
  element.className = mark.shapes.length ? "mark" : "action";
  if (element instanceof HTMLButtonElement) element.type = "button";
  element.dataset["mark"] = String(number);
  element.title = visible(mark.source);
  element.textContent = visible(mark.action ? mark.source : mark.label || coordinates(mark));
  return element;
}

function coordinates(mark: Mark): string {
  return mark.source.replace(/<\/?\w+>/g, "").trim();
}

function copyButton(pre: HTMLElement): HTMLElement {
  const text = pre.textContent ?? "";
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy-code";
  button.textContent = "Copy";
  button.addEventListener("click", () => void copy(text));
  return button;
}
