/** What a conversation without turns shows: what this is, and four ways to begin. */

import { models } from "../api/models.ts";
import { send } from "../conversation/answering.ts";
import { current, update } from "../conversation/store.ts";
import type { Settings } from "../conversation/types.ts";
import { samplePicture } from "../images/sample.ts";
import { Icon, type IconName } from "./icons.tsx";

interface Example {
  icon: IconName;
  title: string;
  question: string;
  hasPicture: boolean;
  settings: Partial<Settings>;
}

const WEATHER = `{
  "type": "object",
  "properties": {"city": {"type": "string"}},
  "required": ["city"]
}`;

const LABELS = `{
  "type": "object",
  "properties": {
    "label": {"enum": ["A red circle and a blue square.", "A green star.", "Something else."]}
  },
  "required": ["label"],
  "additionalProperties": false
}`;

const EXAMPLES: Example[] = [
  { icon: "picture", title: "Describe a picture", question: "What is in this image?", hasPicture: true, settings: {} },
  {
    icon: "grid",
    title: "Point at something",
    question: "Please provide the bounding box coordinate of the region this sentence describes: <ref>red circle</ref>",
    hasPicture: true,
    settings: {},
  },
  {
    icon: "tool",
    title: "Call a function",
    question: "What is the weather in Porto?",
    hasPicture: false,
    settings: { tools: [{ name: "get_weather", description: "Get the weather of a city.", parameters: WEATHER }] },
  },
  {
    icon: "code",
    title: "Answer as JSON",
    question: "Which label fits this image?",
    hasPicture: true,
    settings: { form: "json_schema", schema: LABELS },
  },
];

export function Welcome() {
  const name = models.value[0]?.id ?? "the model";
  return (
    <div class="welcome">
      <h1>Show it a picture.</h1>
      <p class="lead">
        Drop, paste or photograph one, and ask {name} about it. Your pictures go to the server that you opened this page on
        and nowhere else. Conversations stay in this browser.
      </p>
      <h2>Or begin with an example</h2>
      <div class="examples">
        {EXAMPLES.map((example) => (
          <button type="button" key={example.title} class="example" onClick={() => void begin(example)}>
            <Icon name={example.icon} />
            <strong>{example.title}</strong>
            <span>{example.question.replace(/<\/?ref>/g, "")}</span>
          </button>
        ))}
      </div>
      {name === "ternvl-nano" && (
        <p class="note">
          ternvl-nano is the small embedded model. It knows drawn shapes, short texts and capitals, and shows every feature;
          photographs need a larger model.
        </p>
      )}
    </div>
  );
}

async function begin(example: Example): Promise<void> {
  const { id } = current.value;
  const pictures = example.hasPicture ? [await samplePicture()] : [];
  update(id, (before) => ({ ...before, settings: { ...before.settings, ...example.settings } }));
  send(id, null, example.question, pictures);
}
