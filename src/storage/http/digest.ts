/** How much is hashed in one go: 1 MiB takes some 2 ms. */
const SLICE_BYTES = 1024 * 1024;

/**
 * The digest of bytes that may be a whole part, which would hold everything else up for some 50 ms in one go. (The
 * asynchronous digest of Web Crypto copies its input, and the copies outlive their use by far.)
 */
export async function digestOf(algorithm: "sha256" | "md5", bytes: Uint8Array): Promise<Buffer> {
  const hasher = new Bun.CryptoHasher(algorithm);
  for (let offset = 0; offset < bytes.byteLength; offset += SLICE_BYTES) {
    if (offset > 0) await new Promise<void>((resolve) => setImmediate(resolve));
    hasher.update(bytes.subarray(offset, offset + SLICE_BYTES));
  }
  return hasher.digest();
}

/** For the header Content-MD5. */
export async function md5Base64(bytes: Uint8Array): Promise<string> {
  return (await digestOf("md5", bytes)).toString("base64");
}
