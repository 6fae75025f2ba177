/** Markdown to elements. Nothing of a text becomes an element, an address or a style by its own will. */

import DOMPurify, { type Config } from "dompurify";
import { Marked, type Token, type Tokens, type TokensList } from "marked";
import { highlighted } from "./highlight.ts";
import { visible } from "./visible.ts";

const ALLOWED: Config = {
  ALLOWED_TAGS: [
    ..."p br hr em strong del code pre blockquote ul ol li h1 h2 h3 h4 h5 h6 a span".split(" "),
    ..."table thead tbody tr th td".split(" "),
  ],
  ALLOWED_ATTR: ["href", "class", "start", "align"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

function escaped(text: string): string {
  const names: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
  return text.replace(/[&<>"']/g, (each) => names[each]!);
}

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    // Markup in an answer is shown as it was written.
    html: ({ text }: Tokens.HTML | Tokens.Tag) => escaped(text),
    // An image would be fetched from wherever the answer says, which tells its reader's address to that place.
    image: ({ href, text }: Tokens.Image) => escaped(`${text || "image"} (not loaded: ${href})`),
    checkbox: ({ checked }: Tokens.Checkbox) => (checked ? "☑ " : "☐ "),
    code: ({ text, lang }: Tokens.Code) => `<pre><code>${highlighted(text, lang ?? "")}</code></pre>`,
  },
});

export interface Block {
  /** The block's own Markdown, by which it is known to have changed or not. */
  raw: string;
  tokens: TokensList;
}

/** The blocks of a text, of which each can be shown by itself. */
export function blocks(text: string): Block[] {
  const tokens = marked.lexer(visible(text));
  // The page's own heading stands above those of an answer, whichever level they begin with.
  const headings = tokens.filter((token): token is Tokens.Heading => token.type === "heading");
  const top = Math.min(...headings.map((heading) => heading.depth));
  for (const heading of headings) heading.depth = Math.min(6, heading.depth - top + 2);
  return tokens
    .filter((token) => token.type !== "space")
    .map((token: Token) => ({ raw: token.raw, tokens: Object.assign([token], { links: tokens.links }) }));
}

/** The elements of a block. */
export function elements(block: Block): DocumentFragment {
  const fragment = DOMPurify.sanitize(marked.parser(block.tokens), ALLOWED) as unknown as DocumentFragment;
  for (const link of fragment.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  for (const each of fragment.querySelectorAll("p, li, h1, h2, h3, h4, h5, h6, td, th")) each.setAttribute("dir", "auto");
  return fragment;
}
