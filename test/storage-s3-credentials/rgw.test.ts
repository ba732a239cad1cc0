import { expect, test } from "bun:test";
import { mkdir, writeFile } from "node:fs/promises";
import { AwsClient } from "aws4fetch";
import { openCredentials } from "../../src/storage/s3/credentials/provider.ts";
import { forRgw } from "../servers/s3-servers.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";

const ROLE = "arn:aws:iam:::role/app/S3Access";

await forRgw(({ rgw }) => {
  test("a real STS gives a role to whom it trusts, its storage takes the credentials, and it refuses a wrong secret", async () => {
    const user = await rgw.addUser({ uid: "asker" });
    const allow = (statement: object) =>
      JSON.stringify({ Version: "2012-10-17", Statement: [{ Effect: "Allow", ...statement }] });
    const trust = allow({ Principal: { AWS: ["arn:aws:iam:::user/asker"] }, Action: ["sts:AssumeRole"] });
    const policy = allow({ Action: ["s3:*"], Resource: "arn:aws:s3:::*" });
    const name = "--role-name=S3Access";
    await rgw.admin("role", "create", name, "--path=/app/", `--assume-role-policy-doc=${trust}`);
    await rgw.admin("role-policy", "put", name, "--policy-name=all", `--policy-doc=${policy}`);

    await using home = await temporaryDirectory("aws");
    await mkdir(home.file(".aws"));
    const config = (secret: string) =>
      `[profile role]\nrole_arn = ${ROLE}\nsource_profile = asker\nduration_seconds = 900\n[profile asker]\naws_access_key_id = ${user.accessKeyId}\naws_secret_access_key = ${secret}\n`;
    const open = () =>
      openCredentials({
        explicit: undefined,
        credentialsFile: undefined,
        profile: "role",
        region: undefined,
        env: { AWS_ENDPOINT_URL_STS: rgw.account.endpoint },
        homeDirectory: home.path,
      });

    await writeFile(home.file(".aws", "config"), config(user.secretAccessKey));
    const { accessKeyId, secretAccessKey, sessionToken = "", expiresMs } = await open().get();
    expect(Math.abs((expiresMs ?? 0) - Date.now() - 900_000)).toBeLessThan(60_000);
    const keys = { accessKeyId, secretAccessKey, service: "s3", region: "us-east-1" };
    const list = (client: AwsClient) => client.fetch(`${rgw.account.endpoint}/`);
    expect((await list(new AwsClient({ ...keys, sessionToken }))).status).toBe(200);
    expect((await list(new AwsClient({ ...keys, retries: 0 }))).status).toBe(403);

    await writeFile(home.file(".aws", "config"), config("wrong"));
    await expect(open().get()).rejects.toMatchObject({
      code: "storage-denied",
      message: 'STS refused the role of profile "role": AccessDenied',
    });
  });
});
