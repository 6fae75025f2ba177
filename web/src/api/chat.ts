/** An answer as it is streamed. */

import { ask } from "./http.ts";
import { brokenOff, cut, RequestFailed } from "./problems.ts";
import { events } from "./sse.ts";
import type { Chunk, JsonObject } from "./types.ts";

/**
 * The chunks of the answer to a request.
 *
 * Throws RequestFailed if there is none or if it breaks off, AbortError if `signal` stops it.
 */
export async function* stream(body: JsonObject, signal: AbortSignal): AsyncGenerator<Chunk> {
  const headers = { "Content-Type": "application/json" };
  const init = { method: "POST", headers, body: JSON.stringify(body), signal };
  const response = await ask("v1/chat/completions", init);
  if (!response.body) throw new RequestFailed(cut());
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      yield read(data);
    }
  } catch (error) {
    if (signal.aborted || error instanceof RequestFailed) throw error;
    throw new RequestFailed(cut());
  }
  throw new RequestFailed(cut());
}

function read(data: string): Chunk {
  const chunk = JSON.parse(data) as Chunk;
  if (chunk.error) throw new RequestFailed(brokenOff(chunk.error.message ?? "The server gave no reason."));
  return chunk;
}
