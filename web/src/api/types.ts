/** The parts of Chat Completions that the page sends and reads. */

import type { Tiling } from "../images/tiling.ts";

export type Json = null | boolean | number | string | Json[] | { [name: string]: Json };
export type JsonObject = { [name: string]: Json };

export interface ModelCard {
  id: string;
  parent?: string;
  max_model_len?: number;
  image_tiling?: Tiling;
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  prompt_tokens_details?: { cached_tokens?: number; image_tokens?: number };
}

export interface Alternative {
  token: string;
  logprob: number;
}

export interface TokenLogprob extends Alternative {
  top_logprobs: Alternative[];
}

export interface CallDelta {
  index: number;
  id?: string;
  function?: { name?: string; arguments?: string };
}

export interface Chunk {
  choices: {
    delta: { content?: string | null; reasoning_content?: string | null; tool_calls?: CallDelta[] };
    logprobs?: { content?: TokenLogprob[] | null } | null;
    finish_reason?: string | null;
  }[];
  usage?: Usage | null;
  error?: { message?: string };
}
