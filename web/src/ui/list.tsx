/** The conversations that this browser keeps. */

import { useRef, useState } from "preact/hooks";
import { running } from "../conversation/answering.ts";
import { exported } from "../conversation/export.ts";
import { imported, NotImported } from "../conversation/import.ts";
import * as storage from "../conversation/storage.ts";
import { begin, choose, current, forget, get, heads, keep, notKept, show } from "../conversation/store.ts";
import type { Conversation } from "../conversation/types.ts";
import { NotAPicture } from "../images/pictures.ts";
import { Icon, IconButton, type IconName } from "./icons.tsx";
import { announce, dialog, listOpen, setTheme, type Theme, theme } from "./state.ts";

export function List() {
  return (
    <nav class="list" id="conversations" aria-label="Conversations">
      <header class="list-head">
        <span class="brand">
          <Icon name="view" />
          ternvl
        </span>
        <IconButton icon="close" name="Close the conversations" class="only-phone" onClick={() => (listOpen.value = false)} />
      </header>
      <button type="button" class="button new" onClick={() => opened(begin)}>
        <Icon name="plus" />
        New conversation
      </button>
      <ul class="heads">
        {heads.value.map((head) => (
          <Entry key={head.id} head={head} />
        ))}
      </ul>
      {notKept.value && <p class="wrong" role="alert">{notKept.value}</p>}
      <Transfer />
      <Foot />
    </nav>
  );
}

/** On a phone the list covers the conversation, so it closes once one is chosen. */
function opened(open: () => void): void {
  open();
  if (matchMedia("(max-width: 899px)").matches) listOpen.value = false;
}

function Entry({ head }: { head: storage.Head }) {
  const [isAsked, setAsked] = useState(false);
  const isCurrent = current.value.id === head.id;
  const isRunning = Object.keys(get(head.id)?.turns ?? {}).some((id) => running.value.has(id));
  const title = head.title || "A picture";
  return (
    <li class={isCurrent ? "head is-current" : "head"}>
      <button type="button" class="head-title" aria-current={isCurrent} onClick={() => opened(() => void choose(head.id))}>
        <span dir="auto">{title}</span>
        {isRunning && <span class="running" title="An answer is being written" />}
      </button>
      {isAsked ? (
        <span class="row">
          <button type="button" class="small-button danger" onClick={() => void forget(head.id)}>
            Delete
          </button>
          <button type="button" class="small-button" onClick={() => setAsked(false)}>
            Keep
          </button>
        </span>
      ) : (
        <span class="head-actions">
          <IconButton icon="download" name={`Export ${title}`} onClick={() => void download([head.id])} />
          <IconButton icon="trash" name={`Delete ${title}`} onClick={() => setAsked(true)} />
        </span>
      )}
    </li>
  );
}

async function download(ids: string[]): Promise<void> {
  const found = await Promise.all(ids.map(async (id) => get(id) ?? (await storage.load(id))));
  const text = await exported(found.filter((each): each is Conversation => each !== null));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = `conversation${ids.length === 1 ? "" : "s"}.json`;
  link.click();
  window.setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function Transfer() {
  const input = useRef<HTMLInputElement>(null);
  const [wrong, setWrong] = useState("");
  const onChange = async () => {
    const file = input.current!.files?.[0];
    input.current!.value = "";
    if (file) setWrong(await read(file));
  };
  return (
    <div class="transfer">
      <input ref={input} type="file" accept="application/json,.json" hidden aria-label="A file of conversations" onChange={() => void onChange()} />
      <button type="button" class="small-button" onClick={() => input.current!.click()}>
        <Icon name="upload" />
        Import
      </button>
      <button type="button" class="small-button" disabled={!heads.value.length} onClick={() => void download(heads.value.map(({ id }) => id))}>
        <Icon name="download" />
        Export all
      </button>
      {wrong && <p class="wrong" role="alert">{wrong}</p>}
    </div>
  );
}

/** Imports a file; returns what is wrong with it, or nothing. */
async function read(file: File): Promise<string> {
  try {
    const conversations = await imported(await file.text());
    for (const each of conversations) {
      show(each);
      await keep(each.id);
    }
    announce(`${conversations.length} conversations imported`);
    return "";
  } catch (error) {
    if (error instanceof NotImported || error instanceof NotAPicture) return error.message;
    throw error;
  }
}

const THEMES: { value: Theme; icon: IconName; name: string }[] = [
  { value: "system", icon: "system", name: "Colours of the system" },
  { value: "light", icon: "sun", name: "Light" },
  { value: "dark", icon: "moon", name: "Dark" },
];

function Foot() {
  return (
    <footer class="list-foot">
      <div class="segments" role="group" aria-label="Colours">
        {THEMES.map(({ value, icon, name }) => (
          <IconButton key={value} icon={icon} name={name} pressed={theme.value === value} onClick={() => setTheme(value)} />
        ))}
      </div>
      <IconButton icon="keyboard" name="Keys" onClick={() => (dialog.value = { kind: "keys" })} />
    </footer>
  );
}
