/** The models and adapters that the server has. */

import { signal } from "@preact/signals";
import { ask } from "./http.ts";
import { RequestFailed, type Problem } from "./problems.ts";
import type { ModelCard } from "./types.ts";

export const models = signal<ModelCard[]>([]);

/** Why there is no list of models, if there is none. */
export const modelsProblem = signal<Problem | null>(null);

export async function refreshModels(): Promise<void> {
  try {
    const answer = (await (await ask("v1/models")).json()) as { data: ModelCard[] };
    models.value = answer.data;
    modelsProblem.value = null;
  } catch (error) {
    if (!(error instanceof RequestFailed)) throw error;
    modelsProblem.value = error.problem;
  }
}

/** The card of a model; of the first one, which the server takes if a request names none, for an unknown name. */
export function cardOf(name: string): ModelCard | undefined {
  return models.value.find((card) => card.id === name) ?? models.value[0];
}
