import { AzionError, failure, isErrorBody } from "./error.js";
import { EventDecoder } from "./events.js";

/**
 * A streamed answer: a `ReadableStream` of the bytes of its server-sent events, which `new Response(stream)` accepts as
 * its body, and an async iterable of the parsed chunks. It can be read once, in one of the two ways. Cancelling it or
 * leaving the loop ends the request.
 *
 * @extends {ReadableStream<Uint8Array>}
 */
export class AzionStream extends ReadableStream {
  /** @param {ReadableStream<Uint8Array>} body */
  constructor(body) {
    const reader = body.getReader();
    super(
      {
        async pull(controller) {
          const { done, value } = await reader.read().catch(broken);
          if (done) controller.close();
          else controller.enqueue(value);
        },
        cancel: (reason) => reader.cancel(reason),
      },
      { highWaterMark: 0 }, // nothing is read before the reader asks for it
    );
  }

  /** Yield the chunks. Throws an AzionError for a failure, and for a stream that ends before `[DONE]`. */
  async *[Symbol.asyncIterator]() {
    const reader = this.getReader();
    const decoder = new EventDecoder();
    try {
      for (;;) {
        const { done, value } = await reader.read();
        if (done) throw failure(502, "The stream ended before its answer did.", "broken_stream");
        for (const data of decoder.decode(value)) {
          if (data === "[DONE]") return;
          yield parse(data);
        }
      }
    } finally {
      await reader.cancel().catch(() => {}); // a failed stream rejects with the failure that is thrown already
      reader.releaseLock();
    }
  }
}

/** @param {string} data */
function parse(data) {
  let chunk;
  try {
    chunk = JSON.parse(data);
  } catch (cause) {
    throw failure(502, "The stream holds an event that is not JSON.", "broken_stream", cause);
  }
  if (isErrorBody(chunk)) throw new AzionError(500, chunk);
  return chunk;
}

/**
 * @param {unknown} cause
 * @returns {never}
 */
function broken(cause) {
  // The reason of an abort is the caller's and is thrown as it is. Fetch reports a lost connection as a TypeError.
  if (!(cause instanceof TypeError)) throw cause;
  throw failure(502, "The connection broke off before the answer ended.", "broken_stream", cause);
}
