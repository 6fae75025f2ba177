/** Keeps conversations in the browser (IndexedDB). They are sent nowhere. */

import type { AnyTurn, Conversation } from "./types.ts";

/** What the list of conversations shows. */
export interface Head {
  id: string;
  title: string;
  updated: number;
  /** About what the conversation takes of the disk. */
  bytes: number;
}

/** Said where a conversation cannot be kept. */
export class NotKept extends Error {}

const LIMIT = 512 * 1024 * 1024;
const SHARE = 0.9;
const STORES = ["heads", "conversations"] as const;

let opened: Promise<IDBDatabase> | null = null;

function database(): Promise<IDBDatabase> {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("ternvl-playground", 1);
    request.onupgradeneeded = () => {
      for (const name of STORES) request.result.createObjectStore(name, { keyPath: "id" });
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(new NotKept("This browser keeps nothing for this page, as in a private window."));
  });
  return opened;
}

function done<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error ?? new Error("IndexedDB failed"));
  });
}

/** The heads of all conversations, the latest first. */
export async function heads(): Promise<Head[]> {
  const store = (await database()).transaction("heads").objectStore("heads");
  const found = await done(store.getAll() as IDBRequest<Head[]>);
  return found.sort((a, b) => b.updated - a.updated);
}

export async function load(id: string): Promise<Conversation | null> {
  const store = (await database()).transaction("conversations").objectStore("conversations");
  return (await done(store.get(id) as IDBRequest<Conversation | undefined>)) ?? null;
}

/** Keeps a conversation. Throws NotKept, with the reason in words, if there is no room for it. */
export async function save(conversation: Conversation): Promise<Head> {
  const head = headOf(conversation);
  await checkRoom(head);
  const transaction = (await database()).transaction(STORES, "readwrite");
  transaction.objectStore("heads").put(head);
  transaction.objectStore("conversations").put(conversation);
  await new Promise<void>((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(new NotKept(full(head.bytes)));
  });
  return head;
}

export async function remove(id: string): Promise<void> {
  const transaction = (await database()).transaction(STORES, "readwrite");
  for (const name of STORES) transaction.objectStore(name).delete(id);
  await new Promise<void>((resolve) => (transaction.oncomplete = () => resolve()));
}

async function checkRoom(head: Head): Promise<void> {
  const others = (await heads()).filter((each) => each.id !== head.id);
  const total = others.reduce((sum, each) => sum + each.bytes, head.bytes);
  const quota = (await navigator.storage?.estimate())?.quota ?? LIMIT;
  if (total > Math.min(LIMIT, quota * SHARE)) throw new NotKept(full(total));
}

function full(bytes: number): string {
  const size = `${Math.ceil(bytes / 1024 / 1024)} MB`;
  return `The conversations would take ${size}, more than this browser keeps. Export or delete some of them.`;
}

export function headOf(conversation: Conversation): Head {
  const { id, title, updated, turns } = conversation;
  return { id, title, updated, bytes: Object.values(turns).reduce((sum, turn) => sum + bytesOf(turn), 1000) };
}

function bytesOf(turn: AnyTurn): number {
  const pictures = turn.role === "user" ? turn.pictures : [];
  const held = pictures.reduce((sum, each) => sum + (each.kind === "local" ? each.blob.size : 0), 0);
  return held + JSON.stringify(turn).length;
}
