import { BakeliteError } from "../../util/errors.ts";
import type { S3Client } from "./client.ts";
import { abortQuietly, completionXml, createUpload, sendPart } from "./upload.ts";

/**
 * Finds out, once per bucket and process, whether the completion of an upload in parts heeds `If-None-Match: *`: the bytes of a
 * small object of ours are sent once more as an upload of one part to its own key, which has to be refused. A server that ignores the
 * condition stores the same bytes again. Nothing is found out while this process has stored no small object; then the
 * completion is preceded by a look, as always where nothing is proven.
 */
export async function proveConditionalComplete(client: S3Client, signal: AbortSignal | undefined): Promise<void> {
  const { place } = client;
  const { sample } = place;
  if (place.conditionalComplete !== "unknown" || sample === null) return;
  // One at a time: others go on without.
  place.sample = null;
  const target = { client, key: sample.key, headers: sample.headers, signal };
  try {
    // Compaction may have deleted it since.
    const { refusal } = await client.send({ ...looking, method: "HEAD", key: sample.key, signal, accept: [404] });
    if (refusal !== null) return;
    const uploadId = await createUpload(target);
    place.liveUploads.add(uploadId);
    try {
      const part = await sendPart({ bytes: sample.bytes, [Symbol.dispose]() {} }, 1, uploadId, target);
      const { answer } = await client.sendForXml(
        {
          method: "POST",
          key: sample.key,
          query: { uploadId },
          headers: { "content-type": "application/xml", "if-none-match": "*" },
          body: new TextEncoder().encode(completionXml([part])),
          signal,
          doing: "find out whether the server heeds If-None-Match",
          permission: "s3:PutObject",
          accept: [400, 404, 412, 501],
        },
        ["CompleteMultipartUploadResult"],
        () => null,
      );
      if (answer.refusal?.status === 412) place.conditionalComplete = "proven";
      else if (answer.refusal === null || answer.refusal.status === 501) place.conditionalComplete = "absent";
      if (answer.refusal !== null) await abortQuietly(uploadId, target);
    } catch (error) {
      await abortQuietly(uploadId, target);
      throw error;
    } finally {
      place.liveUploads.delete(uploadId);
    }
  } catch (error) {
    if (!(error instanceof BakeliteError) || error.code === "interrupted" || error.code === "internal") throw error;
    // What is wrong will show at the upload itself, which says it better.
  }
}

const looking = { doing: "look for the object", permission: "s3:GetObject and s3:ListBucket" } as const;
