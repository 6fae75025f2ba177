import { AzionError, failure, isErrorBody } from "./error.js";
import { AzionStream } from "./stream.js";

export { AzionError, AzionStream };

const DEFAULT_BASE_URL = "http://127.0.0.1:8000/v1"; // where `ternvl serve` listens

/**
 * A binding with settings of its own. What is left out is read at every call from the environment, where there is one:
 * `TERNVL_BASE_URL` and `TERNVL_API_KEY`.
 *
 * @param {import("./index.js").AzionOptions} [options]
 */
export function createAzion(options = {}) {
  return {
    AI: {
      /**
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

/** The binding with the environment's settings. */
export const Azion = createAzion();

/**
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

/** @param {string} baseURL */
function endpoint(baseURL) {
  const url = `${baseURL.replace(/\/+$/, "")}/chat/completions`;
  if (!/^https?:\/\/[^/]/.test(url) || !URL.canParse(url)) {
    throw new TypeError(`The base URL is "${baseURL}"; it must be an http or https URL.`);
  }
  return url;
}

/**
 * An abort is the caller's own and stays as it is; fetch reports everything else as TypeError.
 * @param {string} url
 * @param {unknown} cause
 */
function unreachable(url, cause) {
  if (!(cause instanceof TypeError)) return cause;
  const detail = cause.cause instanceof Error ? cause.cause.message || cause.message : cause.message;
  return failure(502, `${url} could not be reached: ${detail}.`, "unreachable", cause);
}

/** @param {Response} response */
async function received(response) {
  try {
    return await response.text();
  } catch (cause) {
    throw unreachable(response.url, cause);
  }
}

/**
 * The body of a success; throws for everything else.
 * @param {Response} response
 * @param {string} text
 */
function answer(response, text) {
  const body = parsed(text);
  if (response.ok && typeof body === "object" && body !== null) return body;
  if (!response.ok && isErrorBody(body)) throw new AzionError(response.status, body);
  const status = response.status >= 400 ? response.status : 502;
  throw failure(status, `The server answered with status ${response.status} and no body of the protocol.`);
}

/** @param {string} text */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
