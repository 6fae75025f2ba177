/** Requests to the server that the page came from, with the key if there is one. */

import { signal } from "@preact/signals";
import { gone, problemOf, RequestFailed } from "./problems.ts";

const KEY = "ternvl.key";

/** The key, which is kept until the tab is closed and sent in a header, never in an address. */
export const key = signal(sessionStorage.getItem(KEY) ?? "");

export function setKey(value: string): void {
  key.value = value.trim();
  if (key.value) sessionStorage.setItem(KEY, key.value);
  else sessionStorage.removeItem(KEY);
}

/** The address of a path of the server, which may be mounted below a prefix. */
export function address(path: string): string {
  return new URL(path, document.baseURI.split(/[?#]/)[0]).href;
}

/** The answer to a request. Throws RequestFailed for an error status or no answer, AbortError if it was stopped. */
export async function ask(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers);
  // A header is Latin-1, and the server reads the bytes of UTF-8.
  if (key.value) headers.set("Authorization", `Bearer ${latin1(key.value)}`);
  let response: Response;
  try {
    response = await fetch(address(path), { ...init, headers, credentials: "omit", cache: "no-store" });
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new RequestFailed(gone());
  }
  if (!response.ok) throw new RequestFailed(await problemOf(response));
  return response;
}

function latin1(text: string): string {
  return Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte)).join("");
}
