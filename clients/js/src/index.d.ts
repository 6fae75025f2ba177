export interface TextPart {
  type: "text";
  text: string;
}

export interface ImagePart {
  type: "image_url";
  image_url: {
    url: string;
    detail?: "auto" | "low" | "high" | "original" | null;
    /** The fewest and the most tiles of this image, from 1 to 40. */
    min_dynamic_patch?: number | null;
    max_dynamic_patch?: number | null;
  };
}

/** A refusal in an earlier answer, which counts as text. */
export interface RefusalPart {
  type: "refusal";
  refusal: string;
}

export interface VideoPart {
  type: "video_url";
  video_url: { url: string; num_frames?: number; fps?: number };
}

export interface ToolCall {
  id: string;
  type: "function";
  function: { name: string; arguments: string };
}

/** Instructions. Both roles mean the same. */
export interface SystemMessage {
  role: "system" | "developer";
  content: string | TextPart[];
  name?: string | null;
}

export interface UserMessage {
  role: "user";
  content: string | (TextPart | ImagePart | VideoPart)[];
  name?: string | null;
}

/** An earlier answer, which may be sent back as it was. */
export interface AssistantMessage {
  role: "assistant";
  content?: string | (TextPart | RefusalPart)[] | null;
  refusal?: string | null;
  reasoning_content?: string | null;
  tool_calls?: ToolCall[] | null;
  name?: string | null;
}

/** The result of a tool call, as text, images and videos. */
export interface ToolMessage {
  role: "tool";
  content: string | (TextPart | ImagePart | VideoPart)[] | null;
  tool_call_id: string;
  name?: string | null;
}

export type Message = SystemMessage | UserMessage | AssistantMessage | ToolMessage;

export interface ToolDefinition {
  type: "function";
  function: { name: string; description?: string; parameters?: Record<string, unknown>; strict?: boolean };
}

/** The body of a Chat Completions request without `model`. The server's documentation lists all fields. */
export interface ChatRequest {
  messages: Message[];
  stream?: boolean | null;
  temperature?: number | null;
  top_p?: number | null;
  n?: number | null;
  max_tokens?: number | null;
  presence_penalty?: number | null;
  frequency_penalty?: number | null;
  seed?: number | null;
  stop?: string | string[] | null;
  tools?: ToolDefinition[] | null;
  stream_options?: { include_usage?: boolean } | null;
  [field: string]: unknown;
}

export type FinishReason = "stop" | "length" | "tool_calls";

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
  prompt_tokens_details?: { cached_tokens?: number; image_tokens?: number };
}

export interface ChatCompletion {
  id: string;
  object: "chat.completion";
  created: number;
  model: string;
  system_fingerprint?: string | null;
  choices: {
    index: number;
    message: { role: "assistant"; content: string | null; tool_calls?: ToolCall[]; reasoning_content?: string | null };
    logprobs: unknown;
    finish_reason: FinishReason;
  }[];
  usage: Usage;
  prompt_logprobs?: (Record<string, { logprob: number; rank: number; decoded_token: string }> | null)[];
}

export interface ToolCallDelta {
  index: number;
  id?: string;
  type?: "function";
  function: { name?: string; arguments?: string };
}

export interface ChatCompletionChunk {
  id: string;
  object: "chat.completion.chunk";
  created: number;
  model: string;
  system_fingerprint?: string | null;
  choices: {
    index: number;
    delta: {
      role?: "assistant";
      content?: string | null;
      tool_calls?: ToolCallDelta[];
      reasoning_content?: string | null;
    };
    logprobs: unknown;
    finish_reason: FinishReason | null;
  }[];
  usage?: Usage | null;
}

/**
 * A streamed answer: a `ReadableStream` of the bytes of its server-sent events, which `new Response(stream)` accepts as
 * its body, and an async iterable of the parsed chunks. It can be read once, in one of the two ways. Cancelling it or
 * leaving the loop ends the request.
 */
export interface AzionStream extends ReadableStream<any> {
  getReader(options: { mode: "byob" }): ReadableStreamBYOBReader;
  getReader(): ReadableStreamDefaultReader<Uint8Array>;
  getReader(options?: ReadableStreamGetReaderOptions): ReadableStreamReader<Uint8Array>;
  [Symbol.asyncIterator](): AsyncGenerator<ChatCompletionChunk, undefined, undefined>;
}

export declare const AzionStream: { new (body: ReadableStream<Uint8Array>): AzionStream };

export interface ErrorDetails {
  message: string;
  type: string;
  param: string | null;
  code: string | null;
}

/**
 * A failure of `Azion.AI.run`. `status` is the server's HTTP status; 502 if no server could be reached or its answer
 * broke off; 500 if the failure occurred within a stream. `body` has the protocol's shape, `error` is the object in it.
 */
export declare class AzionError extends Error {
  constructor(status: number, body: { error: ErrorDetails }, options?: ErrorOptions);
  readonly name: "AzionError";
  readonly status: number;
  readonly body: { error: ErrorDetails };
  get error(): ErrorDetails;
}

export interface RunOptions {
  /** Ends the request, also while its stream is read. The awaited promise rejects with the reason of the signal. */
  signal?: AbortSignal;
}

export interface AzionBinding {
  AI: {
    /** Answer a Chat Completions request. Rejects with an AzionError if the request fails. */
    run(model: string, request: ChatRequest & { stream: true }, options?: RunOptions): Promise<AzionStream>;
    run(model: string, request: ChatRequest & { stream?: false | null }, options?: RunOptions): Promise<ChatCompletion>;
    run(model: string, request: ChatRequest, options?: RunOptions): Promise<ChatCompletion | AzionStream>;
  };
}

export interface AzionOptions {
  /** The address of the server. The default is "http://127.0.0.1:8000/v1". */
  baseURL?: string;
  /** The key of the server, which is sent as a bearer token. */
  apiKey?: string;
  /** The function to use instead of the global `fetch`. */
  fetch?: typeof globalThis.fetch;
}

/**
 * Return a binding with its own settings. Settings that are left out are read at every call from the environment, if
 * the runtime has one: `TERNVL_BASE_URL` and `TERNVL_API_KEY`.
 */
export declare function createAzion(options?: AzionOptions): AzionBinding;

/** The binding with the settings of the environment. */
export declare const Azion: AzionBinding;
