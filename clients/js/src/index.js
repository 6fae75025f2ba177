import { AzionError, failure, isErrorBody } from "./error.js";
import { AzionStream } from "./stream.js";

export { AzionError, AzionStream };

const DEFAULT_BASE_URL = "http://127.0.0.1:8000/v1"; // where `ternvl serve` listens

/**
 * Return a binding with its own settings. Settings that are left out are read at every call from the environment, if
 * the runtime has one: `TERNVL_BASE_URL` and `TERNVL_API_KEY`.
 *
 * @param {import("./index.js").AzionOptions} [options]
 */
export function createAzion(options = {}) {
  return {
    AI: {
      /**
       * Answer a Chat Completions request. Rejects with an AzionError if the request fails.
       * @param {string} model
       * @param {import("./index.js").ChatRequest} request
       * @param {import("./index.js").RunOptions} [runOptions]
       */
      async run(model, request, { signal } = {}) {
        const body = JSON.stringify({ ...request, model });
        const response = await send(options, { method: "POST", body, signal });
        const isStream = response.headers.get("content-type")?.includes("text/event-stream");
        if (response.ok && isStream && response.body) return new AzionStream(response.body);
        return answer(response, await received(response));
      },
    },
  };
}

/** The binding with the settings of the environment. */
export const Azion = createAzion();

/**
 * Send a request to the chat endpoint.
 * @param {import("./index.js").AzionOptions} options
 * @param {RequestInit} init
 */
async function send(options, init) {
  const environment = globalThis.process?.env ?? {};
  const baseURL = options.baseURL || environment.TERNVL_BASE_URL || DEFAULT_BASE_URL;
  const apiKey = options.apiKey || environment.TERNVL_API_KEY;
  const fetch = options.fetch ?? globalThis.fetch;
  const headers = { "content-type": "application/json", ...(apiKey && { authorization: `Bearer ${apiKey}` }) };
  const url = endpoint(baseURL);
  try {
    return await fetch(url, { ...init, headers });
  } catch (cause) {
    throw unreachable(url, cause);
  }
}

/**
 * Return the URL of the chat endpoint.
 * @param {string} baseURL
 */
function endpoint(baseURL) {
  const url = `${baseURL.replace(/\/+$/, "")}/chat/completions`;
  if (!/^https?:\/\/[^/]/.test(url) || !URL.canParse(url)) {
    throw new TypeError(`The base URL is "${baseURL}", but must be an http or https URL.`);
  }
  return url;
}

/**
 * Return the error of a request that got no answer. The reason of an abort is the caller's and stays as it is; fetch
 * reports all other failures as a TypeError.
 * @param {string} url
 * @param {unknown} cause
 */
function unreachable(url, cause) {
  if (!(cause instanceof TypeError)) return cause;
  const detail = cause.cause instanceof Error ? cause.cause.message || cause.message : cause.message;
  return failure(502, `${url} could not be reached: ${detail}.`, "unreachable", cause);
}

/**
 * Return the body of a response as text.
 * @param {Response} response
 */
async function received(response) {
  try {
    return await response.text();
  } catch (cause) {
    throw unreachable(response.url, cause);
  }
}

/**
 * Return the body of a successful response. Throws an AzionError for any other response.
 * @param {Response} response
 * @param {string} text
 */
function answer(response, text) {
  const body = parsed(text);
  if (response.ok && typeof body === "object" && body !== null) return body;
  if (!response.ok && isErrorBody(body)) throw new AzionError(response.status, body);
  const status = response.status >= 400 ? response.status : 502;
  const message = `The server answered with status ${response.status}, but its body is neither an answer nor an error.`;
  throw failure(status, message);
}

/**
 * Return the JSON value of a text, or undefined if it is not JSON.
 * @param {string} text
 */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
