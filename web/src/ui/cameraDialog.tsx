/** Takes a picture with the camera. */

import { useEffect, useRef, useState } from "preact/hooks";
import { fromFile } from "../images/pictures.ts";
import { closeDialog, Modal } from "./dialog.tsx";
import { attach } from "./state.ts";

export function CameraDialog() {
  const video = useRef<HTMLVideoElement>(null);
  const [isReady, setReady] = useState(false);
  const wrong = useCamera(video);
  const take = async () => {
    const blob = await frameOf(video.current!);
    void attach([fromFile(blob, "camera.jpg")]);
    closeDialog();
  };
  return (
    <Modal title="Take a picture">
      {wrong ? (
        <p class="wrong">{wrong}</p>
      ) : (
        <>
          <video ref={video} class="camera" autoplay muted playsInline aria-label="What the camera sees" onPlaying={() => setReady(true)} />
          <button type="button" class="button primary" disabled={!isReady} onClick={() => void take()}>
            Take this picture
          </button>
        </>
      )}
    </Modal>
  );
}

/** Shows the camera in a video while the component is shown; returns what keeps it from doing so. */
function useCamera(video: { current: HTMLVideoElement | null }): string {
  const [wrong, setWrong] = useState("");
  useEffect(() => {
    let stream: MediaStream | null = null;
    let isClosed = false;
    const start = async () => {
      if (!navigator.mediaDevices) throw new DOMException("", "InsecureContext");
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1920 } } });
      if (isClosed) stop();
      else video.current!.srcObject = stream;
    };
    const stop = () => stream?.getTracks().forEach((track) => track.stop());
    start().catch((error: DOMException) => setWrong(inWords(error)));
    return () => {
      isClosed = true;
      stop();
    };
  }, []);
  return wrong;
}

function inWords({ name, message }: DOMException): string {
  const words: Record<string, string> = {
    InsecureContext: "A browser gives pages its camera only over https:// or on this machine (http://localhost).",
    NotAllowedError: "The camera is not allowed for this page. The browser's address bar has the permission.",
    NotFoundError: "This device has no camera.",
    NotReadableError: "The camera is in use by another program.",
  };
  return words[name] ?? `The camera cannot be used: ${message || name}.`;
}

async function frameOf(video: HTMLVideoElement): Promise<Blob> {
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d")!.drawImage(video, 0, 0);
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("The camera gave no picture."))), "image/jpeg", 0.92);
  });
}
