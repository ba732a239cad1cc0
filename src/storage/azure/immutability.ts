import { BakeliteError } from "../../util/errors.ts";
import { describeRefusal, type Refusal } from "../http/refusal.ts";
import type { AzureClient } from "./client.ts";

/** Why a blob was not deleted, with the day from which it may be, where the blob itself says so. */
export async function protectedUntil(
  client: AzureClient,
  {
    key,
    refusal,
    signal,
  }: { readonly key: string; readonly refusal: Refusal; readonly signal: AbortSignal | undefined },
): Promise<BakeliteError> {
  const request = { doing: "look at the object", permission: "the role Storage Blob Data Reader" };
  const { headers, refusal: unseen } = await client.send({
    ...request,
    method: "HEAD",
    key,
    signal,
    accept: [403, 404],
  });
  const untilMs = unseen === null ? Date.parse(headers.get("x-ms-immutability-policy-until-date") ?? "") : Number.NaN;
  const isHeld = headers.get("x-ms-legal-hold") === "true" || refusal.code === "BlobImmutableDueToLegalHold";
  const until = Number.isNaN(untilMs) ? "" : ` until ${new Date(untilMs).toISOString()}`;
  const why = isHeld ? "a legal hold protects it" : `an immutability policy protects it${until}`;
  const { subject } = client.about({ ...request, key });
  return new BakeliteError("storage-denied", `cannot delete the object: ${why}`, {
    subject,
    hint: isHeld
      ? "clear the legal hold if it is no longer wanted; bakelite tries again"
      : "nothing has to be done: it is deleted by a later run, when the policy lets it go",
    cause: new Error(describeRefusal(refusal)),
  });
}
