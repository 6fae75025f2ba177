/** The request that continues a conversation. */

import type { Json, JsonObject } from "../api/types.ts";
import type { Picture } from "../images/pictures.ts";
import type { AnyTurn, AnswerTurn, Settings, UserTurn } from "./types.ts";

export type AddressOf = (picture: Picture) => string;

/** The body of the request for the answer after these turns. `addressOf` gives the URL of each picture. */
export function requestBody(turns: AnyTurn[], settings: Settings, addressOf: AddressOf): JsonObject {
  const system: JsonObject[] = settings.system.trim() ? [{ role: "system", content: settings.system }] : [];
  return {
    ...(settings.model ? { model: settings.model } : {}),
    messages: [...system, ...turns.flatMap((turn) => messagesOf(turn, addressOf))],
    stream: true,
    stream_options: { include_usage: true },
    ...sampling(settings),
    ...tools(settings),
    ...form(settings),
  };
}

function messagesOf(turn: AnyTurn, addressOf: AddressOf): JsonObject[] {
  if (turn.role === "user") return [{ role: "user", content: userContent(turn, addressOf) }];
  if (turn.role === "assistant") return assistantMessage(turn);
  return turn.results.map((result) => ({ role: "tool", tool_call_id: result.id, content: result.content }));
}

function userContent(turn: UserTurn, addressOf: AddressOf): Json {
  if (!turn.pictures.length) return turn.text;
  const pictures = turn.pictures.map((each) => ({ type: "image_url", image_url: { url: addressOf(each) } }));
  return turn.text ? [...pictures, { type: "text", text: turn.text }] : pictures;
}

/** An answer as the server takes it back; none for one that failed before its first word. */
function assistantMessage(turn: AnswerTurn): JsonObject[] {
  if (!turn.text && !turn.calls.length && turn.state !== "done") return [];
  const calls = turn.calls.map((call) => ({
    id: call.id,
    type: "function",
    function: { name: call.name, arguments: call.arguments },
  }));
  const content = turn.text || !calls.length ? turn.text : null;
  return [{ role: "assistant", content, ...(calls.length ? { tool_calls: calls } : {}) }];
}

function sampling(settings: Settings): JsonObject {
  const given: Record<string, Json> = {
    temperature: settings.temperature,
    top_p: settings.topP,
    max_tokens: settings.maxTokens,
    seed: settings.seed,
    mm_processor_kwargs: settings.maxTiles === null ? null : { max_dynamic_patch: settings.maxTiles },
    logprobs: settings.logprobs || null,
    top_logprobs: settings.logprobs ? settings.topLogprobs : null,
  };
  return Object.fromEntries(Object.entries(given).filter(([, value]) => value !== null));
}

function tools(settings: Settings): JsonObject {
  if (!settings.tools.length) return {};
  const list = settings.tools.map(({ name, description, parameters }) => ({
    type: "function",
    function: {
      name,
      ...(description.trim() ? { description } : {}),
      ...(parameters.trim() ? { parameters: JSON.parse(parameters) as Json } : {}),
    },
  }));
  const name = settings.toolChoice.startsWith("function:") ? settings.toolChoice.slice("function:".length) : "";
  const choice: Json = name ? { type: "function", function: { name } } : settings.toolChoice;
  return { tools: list, ...(choice === "auto" ? {} : { tool_choice: choice }) };
}

function form(settings: Settings): JsonObject {
  if (settings.form === "text") return {};
  if (settings.form === "json_object") return { response_format: { type: "json_object" } };
  const schema = JSON.parse(settings.schema) as Json;
  return { response_format: { type: "json_schema", json_schema: { name: "answer", schema } } };
}
