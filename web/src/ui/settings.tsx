/** The settings of the answers of a conversation. */

import { key, setKey } from "../api/http.ts";
import { refreshModels } from "../api/models.ts";
import { wrongSchema } from "../conversation/settings.ts";
import { current, updateSettings } from "../conversation/store.ts";
import type { FormMode } from "../conversation/types.ts";
import { Choice, NumberField, Section, TextField } from "./fields.tsx";
import { Icon, IconButton } from "./icons.tsx";
import { dialog, settingsOpen } from "./state.ts";

export function SettingsPanel() {
  return (
    <aside class="panel" id="settings" aria-label="Settings of answers">
      <header class="panel-head">
        <h2>Settings</h2>
        <IconButton icon="close" name="Close the settings" onClick={() => (settingsOpen.value = false)} />
      </header>
      <System />
      <Sampling />
      <Pictures />
      <Tools />
      <Form />
      <Logprobs />
      {key.value && <Key />}
    </aside>
  );
}

function System() {
  const { system } = current.value.settings;
  const hint = "Empty: the model's own, with which it was trained.";
  return (
    <TextField label="System message" rows={3} value={system} hint={hint} onInput={(text) => updateSettings({ system: text })} />
  );
}

function Sampling() {
  return (
    <Section title="Sampling" isOpen>
      <div class="pair">
        <NumberField name="temperature" label="Temperature" hint="0 to 2; 0 takes the likeliest." />
        <NumberField name="topP" label="Top p" hint="0 to 1, of the probability." />
        <NumberField name="maxTokens" label="Max tokens" hint="Cuts the answer." />
        <NumberField name="seed" label="Seed" hint="Repeats an answer." />
      </div>
    </Section>
  );
}

function Pictures() {
  return (
    <Section title="Pictures">
      <NumberField name="maxTiles" label="Max tiles of a picture" hint="1 to 40. More tiles show finer detail and cost more tokens." />
    </Section>
  );
}

function Tools() {
  const { tools, toolChoice } = current.value.settings;
  const choices = [
    ["auto", "the model decides"],
    ["required", "it must call one"],
    ["none", "it must not call any"],
    ...tools.map((tool) => [`function:${tool.name}`, `it must call ${tool.name}`] as const),
  ] as const;
  const add = () => (dialog.value = { kind: "tool", index: tools.length });
  return (
    <Section title={tools.length ? `Tools (${tools.length})` : "Tools"} isOpen={tools.length > 0}>
      <ul class="tools">
        {tools.map((tool, index) => (
          <li key={index}>
            <button type="button" class="tool-name" onClick={() => (dialog.value = { kind: "tool", index })}>
              <Icon name="tool" />
              {tool.name}
            </button>
            <IconButton icon="trash" name={`Remove ${tool.name}`} onClick={() => updateSettings({ tools: tools.toSpliced(index, 1) })} />
          </li>
        ))}
      </ul>
      <button type="button" class="button" onClick={add}>
        Add a tool
      </button>
      {tools.length > 0 && (
        <Choice label="Calls" value={toolChoice} options={choices} onChange={(value) => updateSettings({ toolChoice: value })} />
      )}
    </Section>
  );
}

const FORMS = [
  ["text", "any text"],
  ["json_object", "any JSON object"],
  ["json_schema", "JSON that matches a schema"],
] as const;

function Form() {
  const { form, schema } = current.value.settings;
  const wrong = schema.trim() ? wrongSchema(schema) : "";
  return (
    <Section title="Form of answers" isOpen={form !== "text"}>
      <Choice label="An answer is" value={form} options={FORMS} onChange={(value) => updateSettings({ form: value as FormMode })} />
      {form === "json_schema" && (
        <TextField
          label="JSON Schema"
          rows={8}
          isCode
          value={schema}
          wrong={wrong}
          hint="The server holds every answer to it."
          placeholder={'{"type": "object", ...}'}
          onInput={(text) => updateSettings({ schema: text })}
        />
      )}
    </Section>
  );
}

const ALTERNATIVES = [0, 1, 2, 3, 5, 10, 20].map((count) => [String(count), String(count)] as const);

function Logprobs() {
  const { logprobs, topLogprobs } = current.value.settings;
  return (
    <Section title="Log probabilities" isOpen={logprobs}>
      <label class="check">
        <input type="checkbox" checked={logprobs} onChange={(event) => updateSettings({ logprobs: event.currentTarget.checked })} />
        Ask for them
      </label>
      {logprobs && (
        <Choice
          label="Alternatives of each token"
          value={String(topLogprobs)}
          options={ALTERNATIVES}
          onChange={(value) => updateSettings({ topLogprobs: Number(value) })}
        />
      )}
      <p class="note">“Tokens” below an answer shows how sure the model was of each.</p>
    </Section>
  );
}

function Key() {
  const forget = () => {
    setKey("");
    void refreshModels();
  };
  return (
    <Section title="API key" isOpen>
      <p class="note">This tab sends a key with its requests.</p>
      <button type="button" class="button" onClick={forget}>
        Forget the key
      </button>
    </Section>
  );
}
