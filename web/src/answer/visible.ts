/** Text whose characters cannot hide or turn around what is beside them. */

// Embeddings, overrides and isolates of the bidirectional algorithm, and the separators of its paragraphs.
const CONTROLS = /[\u202a-\u202e\u2066-\u2069\u2028\u2029]/g;

/** The text with the characters that change the direction of others written out, such as [U+202E]. */
export function visible(text: string): string {
  return text.replace(CONTROLS, (each) => `[U+${each.codePointAt(0)!.toString(16).toUpperCase().padStart(4, "0")}]`);
}

/** A name in one line: without control characters, and with directions written out. */
export function visibleName(name: string): string {
  return visible(name).replace(/[\p{Cc}\p{Zl}\p{Zp}]/gu, " ").trim() || "image";
}
