import { z } from "zod";
import { type Clock, systemClock } from "../../../util/clock.ts";
import { BakeliteError } from "../../../util/errors.ts";
import { askDirectly } from "../../http/ask.ts";
import { parseJson } from "../json.ts";
import { type AccessToken, type GcsCredentialsOptions, variable } from "./types.ts";

/** By number, so that no resolver sends the question elsewhere. Source: Compute Engine, "About VM metadata". */
const DEFAULT_HOST = "169.254.169.254";
const PATH = "/computeMetadata/v1/instance/service-accounts/default/token";
/** It is in the host's own hypervisor; what has not answered by then is not Google's. */
const TIMEOUT_MS = 1500;
const ATTEMPTS = 3;

const answerSchema = z.object({ access_token: z.string().regex(/^[\x21-\x7e]+$/), expires_in: z.number().positive() });

/** `absent` says why there is none, as a clause. */
export type MetadataAnswer =
  | { readonly kind: "found"; readonly token: AccessToken }
  | { readonly kind: "absent"; readonly why: string };

/**
 * A token of the service account that this machine runs as (Compute Engine, GKE, Cloud Run). Every question carries `Metadata-Flavor:
 * Google`, without which the server refuses it, so that nobody can trick another program into asking. Honours GCE_METADATA_HOST
 * and NO_GCE_CHECK=true. Throws `storage-denied` when the machine has a server and no account.
 */
export async function metadataToken(options: GcsCredentialsOptions, signal: AbortSignal): Promise<MetadataAnswer> {
  if (variable(options, "NO_GCE_CHECK")?.toLowerCase() === "true")
    return { kind: "absent", why: "switched off by NO_GCE_CHECK" };
  const clock: Clock = options.clock ?? systemClock;
  const host = variable(options, "GCE_METADATA_HOST") ?? DEFAULT_HOST;
  const url = URL.parse(`http://${host}${PATH}`);
  if (url === null) return { kind: "absent", why: "GCE_METADATA_HOST is no host" };
  let why = "";
  for (let attempt = 1; attempt <= ATTEMPTS; attempt++) {
    const headers = { "metadata-flavor": "Google" };
    const answer = await askDirectly({ method: "GET", url, headers, timeoutMs: TIMEOUT_MS, signal });
    if (answer.kind === "no-answer") {
      why = answer.why;
      continue;
    }
    if (answer.status >= 500 || answer.status === 429) {
      why = `status ${answer.status} from ${url.host}`;
      continue;
    }
    if (answer.status === 404)
      throw new BakeliteError("storage-denied", "cannot log in to Google Cloud: this machine has no service account", {
        subject: url.host,
        hint: "attach a service account to the machine, or set `service_account_file`",
      });
    const found = answerSchema.safeParse(parseJson(answer.body));
    if (answer.status !== 200 || !found.success)
      return { kind: "absent", why: `an answer of ${url.host} that is not the metadata server's` };
    const { access_token: token, expires_in } = found.data;
    return { kind: "found", token: { token, expiresMs: clock.nowMs() + expires_in * 1000 } };
  }
  return { kind: "absent", why };
}
