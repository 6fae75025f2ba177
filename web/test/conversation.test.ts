import assert from "node:assert/strict";
import { test } from "node:test";
import { requestBody } from "../src/conversation/body.ts";
import { DEFAULTS, wrongNumber, wrongSettings, wrongTool } from "../src/conversation/settings.ts";
import { added, children, path, pathTo, stepped } from "../src/conversation/tree.ts";
import type { AnswerTurn, Conversation, UserTurn } from "../src/conversation/types.ts";

const EMPTY: Conversation = { id: "c", title: "", updated: 0, settings: DEFAULTS, turns: {}, chosen: {} };

const user = (id: string, parent: string | null): UserTurn => ({ id, parent, role: "user", text: id, pictures: [] });
const answer = (id: string, parent: string, change: Partial<AnswerTurn> = {}): AnswerTurn => ({
  id, parent, role: "assistant", model: "", text: id, reasoning: "", calls: [], tokens: [], state: "done", isJson: false,
  finish: "stop", counts: null, problem: null, first: null, last: null, ...change,
}); // prettier-ignore

const TREE = [user("u1", null), answer("a1", "u1"), answer("a2", "u1"), user("u2", "a1")].reduce(added, EMPTY);

test("the path goes through what was chosen", () => {
  const shown = (conversation: Conversation) => path(conversation).map((turn) => turn.id);
  assert.deepEqual(shown(TREE), ["u1", "a2"]);
  assert.deepEqual(shown(stepped(TREE, TREE.turns["a2"]!, -1)), ["u1", "a1", "u2"]);
  assert.equal(stepped(TREE, TREE.turns["a2"]!, 1), TREE);
  assert.deepEqual(pathTo(TREE, "u2").map((turn) => turn.id), ["u1", "a1", "u2"]);
  assert.deepEqual(children(TREE, "u1").map((turn) => turn.id), ["a1", "a2"]);
});

test("a request has the settings that were made, and no others", () => {
  const turns = [user("Hi", null)];
  assert.deepEqual(requestBody(turns, DEFAULTS, () => ""), {
    messages: [{ role: "user", content: "Hi" }],
    stream: true,
    stream_options: { include_usage: true },
  });
  const settings = { ...DEFAULTS, system: "Be brief.", temperature: 0, topP: 0.5, maxTokens: 9, seed: -3, maxTiles: 2, logprobs: true };
  const { messages, ...rest } = requestBody(turns, settings, () => "");
  assert.deepEqual(messages, [{ role: "system", content: "Be brief." }, { role: "user", content: "Hi" }]);
  assert.deepEqual(rest, {
    stream: true, stream_options: { include_usage: true }, temperature: 0, top_p: 0.5, max_tokens: 9, seed: -3,
    mm_processor_kwargs: { max_dynamic_patch: 2 }, logprobs: true, top_logprobs: 5,
  }); // prettier-ignore
});

test("pictures come before the text, calls and results go back, and an answer that failed is left out", () => {
  const picture = { kind: "remote", id: "p", url: "https://example.com/a.png" } as const;
  const calls = [{ id: "call_1", name: "f", arguments: "{}" }];
  const turns = [
    { ...user("What?", null), pictures: [picture] },
    answer("failed", "What?", { text: "", state: "failed" }),
    answer("", "What?", { calls, finish: "tool_calls", text: "" }),
    { id: "t", parent: "a", role: "tool" as const, results: [{ id: "call_1", name: "f", content: "7" }] },
  ];
  assert.deepEqual(requestBody(turns, DEFAULTS, () => "data:x")["messages"], [
    { role: "user", content: [{ type: "image_url", image_url: { url: "data:x" } }, { type: "text", text: "What?" }] },
    { role: "assistant", content: null, tool_calls: [{ id: "call_1", type: "function", function: { name: "f", arguments: "{}" } }] },
    { role: "tool", tool_call_id: "call_1", content: "7" },
  ]);
});

test("tools, the choice among them, and the form of the answer", () => {
  const tools = [{ name: "f", description: "", parameters: '{"type": "object"}' }];
  const body = requestBody([], { ...DEFAULTS, tools, toolChoice: "function:f", form: "json_schema", schema: "{}" }, () => "");
  assert.deepEqual(body["tools"], [{ type: "function", function: { name: "f", parameters: { type: "object" } } }]);
  assert.deepEqual(body["tool_choice"], { type: "function", function: { name: "f" } });
  assert.deepEqual(body["response_format"], { type: "json_schema", json_schema: { name: "answer", schema: {} } });
});

test("what is wrong with settings is said", () => {
  assert.equal(wrongNumber("temperature", "2.5"), "The most is 2.");
  assert.equal(wrongNumber("seed", "1.5"), "This is not a whole number.");
  assert.equal(wrongNumber("maxTiles", "0"), "The least is 1.");
  assert.equal(wrongNumber("topP", "much"), "This is not a number.");
  assert.equal(wrongNumber("topP", ""), "");
  const tool = { name: "a b", description: "", parameters: "[" };
  assert.deepEqual(Object.keys(wrongTool(tool, [])), ["name", "parameters"]);
  assert.match(wrongTool({ ...tool, name: "a", parameters: '{"type": "string"}' }, []).parameters!, /"type": "object"/);
  assert.match(wrongTool({ ...tool, name: "a", parameters: "" }, [{ ...tool, name: "a" }]).name!, /Another tool/);
  assert.equal(wrongSettings(DEFAULTS), "");
  assert.match(wrongSettings({ ...DEFAULTS, form: "json_schema", schema: "[]" }), /is an object/);
  assert.match(wrongSettings({ ...DEFAULTS, tools: [{ ...tool, name: "f", parameters: "" }], toolChoice: "function:g" }), /no longer there/);
});
