/**
 * An answer that is no success. `status` is the HTTP status: the server's; 502 where no server could be reached or its
 * answer broke off; 500 where the failure came within a stream. `body` is the protocol's, `error` the object in it.
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
 * An error that no server described.
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
 * Whether a value is an error body of the protocol.
 * @param {any} body
 */
export function isErrorBody(body) {
  return typeof body?.error === "object" && body.error !== null && "message" in body.error;
}
