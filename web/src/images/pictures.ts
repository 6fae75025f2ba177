/** The images of a conversation: files that the page holds, and addresses that the server fetches. */

export interface LocalPicture {
  kind: "local";
  id: string;
  name: string;
  blob: Blob;
  /** Pixels as they are seen, with the orientation applied; 0 if this browser cannot show the format. */
  width: number;
  height: number;
}

export interface RemotePicture {
  kind: "remote";
  id: string;
  url: string;
}

export type Picture = LocalPicture | RemotePicture;

/** What the server reads (docs/server.md, Images). */
const TYPES = ["image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff", "image/avif"];

export const ACCEPTED = TYPES.join(",");

/** A sentence that says why something is no picture that the server takes. */
export class NotAPicture extends Error {}

export function newId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The picture of a file. Throws NotAPicture. */
export async function fromFile(file: Blob, name: string): Promise<LocalPicture> {
  if (!TYPES.includes(file.type)) {
    throw new NotAPicture(`${name} is no picture that the server reads (JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF).`);
  }
  if (!file.size) throw new NotAPicture(`${name} is empty.`);
  const blob = new Blob([await file.arrayBuffer()], { type: file.type });
  return { kind: "local", id: newId(), name, blob, ...(await sizeOf(blob)) };
}

async function sizeOf(blob: Blob): Promise<{ width: number; height: number }> {
  const url = URL.createObjectURL(blob);
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
    return { width: image.naturalWidth, height: image.naturalHeight };
  } catch {
    return { width: 0, height: 0 };
  } finally {
    URL.revokeObjectURL(url);
  }
}

/** The picture at an address: an http(s) one is left to the server, a data: one is read here. Throws NotAPicture. */
export async function fromAddress(address: string): Promise<Picture> {
  const url = address.trim();
  if (/^https?:\/\/\S/i.test(url)) return { kind: "remote", id: newId(), url };
  if (/^data:/i.test(url)) return fromFile(blobOf(url), "image");
  throw new NotAPicture("An address begins with https://, http:// or data:image/.");
}

/** The content of a data: URL. Throws NotAPicture. */
export function blobOf(dataUrl: string): Blob {
  const match = /^data:(image\/[a-z0-9.+-]+);base64,([A-Za-z0-9+/]*={0,2})$/i.exec(dataUrl.replace(/\s/g, ""));
  if (!match) throw new NotAPicture("The address is no image in base64: data:image/png;base64,...");
  try {
    const bytes = Uint8Array.from(atob(match[2]!), (character) => character.charCodeAt(0));
    return new Blob([bytes], { type: match[1]!.toLowerCase() });
  } catch {
    throw new NotAPicture("The address has base64 that is cut or damaged.");
  }
}

/** The data: URL of a file's content. */
export function dataUrlOf(blob: Blob): Promise<string> {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result as string);
    reader.onerror = () => reject(reader.error ?? new Error("The picture cannot be read."));
    reader.readAsDataURL(blob);
  });
}

/** The pictures among what was dropped or pasted. */
export function filesOf(transfer: DataTransfer | null): File[] {
  return Array.from(transfer?.files ?? []).filter((file) => file.type.startsWith("image/"));
}
