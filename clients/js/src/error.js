/**
 * A failure of `Azion.AI.run`. `status` is the server's HTTP status; 502 if no server could be reached or its answer
 * broke off; 500 if the failure occurred within a stream. `body` has the protocol's shape, `error` is the object in it.
 */
export class AzionError extends Error {
  /**
   * @param {number} status
   * @param {{ error: import("./index.js").ErrorDetails }} body
   * @param {ErrorOptions} [options]
   */
  constructor(status, body, options) {
    super(String(body.error.message), options);
    this.name = "AzionError";
    this.status = status;
    this.body = body;
  }

  get error() {
    return this.body.error;
  }
}

/**
 * Return the error of a failure that the server did not describe itself.
 * @param {number} status
 * @param {string} message
 * @param {string | null} [code]
 * @param {unknown} [cause]
 */
export function failure(status, message, code = null, cause = undefined) {
  const type = status >= 500 ? "server_error" : "invalid_request_error";
  return new AzionError(status, { error: { message, type, param: null, code } }, { cause });
}

/**
 * Return whether a value is an error body of the protocol.
 * @param {any} body
 */
export function isErrorBody(body) {
  return typeof body?.error === "object" && body.error !== null && "message" in body.error;
}
