/** What the page shows around the conversation. */

import { signal } from "@preact/signals";
import { NotAPicture, type Picture } from "../images/pictures.ts";

export type Dialog =
  | { kind: "code"; turnId: string | null }
  | { kind: "camera" }
  | { kind: "address" }
  | { kind: "picture"; picture: Picture }
  | { kind: "tool"; index: number }
  | { kind: "keys" }
  | null;

export const dialog = signal<Dialog>(null);
export const listOpen = signal(matchMedia("(min-width: 900px)").matches);
export const settingsOpen = signal(false);

/** The message that is being written. */
export const draftText = signal("");
export const draftPictures = signal<Picture[]>([]);

/** What went wrong with the message that is being written; empty if nothing did. */
export const draftProblem = signal("");

/** The mark that the pointer or the focus is on, as "turn:number"; empty if it is on none. */
export const pointed = signal("");

/** Said by screen readers. */
export const announcement = signal("");

export function announce(text: string): void {
  // The same text twice would not be said twice.
  announcement.value = announcement.value === text ? `${text} ` : text;
}

/** Adds pictures to the message. Those that cannot be taken are told in `draftProblem`. */
export async function attach(pictures: Promise<Picture>[]): Promise<void> {
  draftProblem.value = "";
  for (const each of await Promise.allSettled(pictures)) {
    if (each.status === "fulfilled") draftPictures.value = [...draftPictures.value, each.value];
    else if (each.reason instanceof NotAPicture) draftProblem.value = each.reason.message;
    else throw each.reason;
  }
  if (!draftProblem.value) announce(`The message has ${draftPictures.value.length} pictures`);
}

export type Theme = "system" | "light" | "dark";

const THEME = "ternvl.theme";

export const theme = signal<Theme>("system");

export function setTheme(value: Theme): void {
  theme.value = value;
  document.documentElement.dataset["theme"] = value;
  try {
    localStorage.setItem(THEME, value);
  } catch {
    // The choice holds until the page is closed.
  }
}

export function restoreTheme(): void {
  const kept = localStorage.getItem(THEME);
  setTheme(kept === "light" || kept === "dark" ? kept : "system");
}

/** Copies a text, also where the page is not served over https and has no clipboard of its own. */
export async function copy(text: string): Promise<void> {
  if (navigator.clipboard) await navigator.clipboard.writeText(text);
  else copyBySelection(text);
  announce("Copied");
}

function copyBySelection(text: string): void {
  const area = document.createElement("textarea");
  area.value = text;
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
