/** Conversations as the text of a file. */

import { dataUrlOf, type Picture } from "../images/pictures.ts";
import type { AnyTurn, Conversation } from "./types.ts";

export const FORMAT = "ternvl-playground";
export const VERSION = 1;

export async function exported(conversations: Conversation[]): Promise<string> {
  const written = await Promise.all(
    conversations.map(async ({ title, updated, settings, chosen, turns }) => {
      return { title, updated, settings, chosen, turns: await Promise.all(Object.values(turns).map(writtenTurn)) };
    }),
  );
  return JSON.stringify({ format: FORMAT, version: VERSION, conversations: written }, null, 1);
}

async function writtenTurn(turn: AnyTurn): Promise<object> {
  return turn.role === "user" ? { ...turn, pictures: await Promise.all(turn.pictures.map(writtenPicture)) } : turn;
}

async function writtenPicture(picture: Picture): Promise<object> {
  return picture.kind === "remote" ? { url: picture.url } : { name: picture.name, url: await dataUrlOf(picture.blob) };
}
