/** A picture to begin with, drawn here: shapes as the embedded model knows them. */

import { fromFile, type LocalPicture } from "./pictures.ts";

const SIDE = 448;

export async function samplePicture(): Promise<LocalPicture> {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE;
  draw(canvas.getContext("2d")!);
  const blob = await new Promise<Blob | null>((resolve) => canvas.toBlob(resolve, "image/png"));
  return fromFile(blob!, "shapes.png");
}

function draw(context: CanvasRenderingContext2D): void {
  context.fillStyle = "#f2efe6";
  context.fillRect(0, 0, SIDE, SIDE);
  context.fillStyle = "#d81e1e";
  context.beginPath();
  context.arc(128, 150, 78, 0, 2 * Math.PI);
  context.fill();
  context.fillStyle = "#2143c8";
  context.fillRect(250, 258, 142, 142);
}
