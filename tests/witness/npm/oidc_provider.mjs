// Serves oidc-provider over HTTPS below /TENANT/v2.0, where Entra's clients look for a discovery document.
//
//     node oidc_provider.mjs MODULES SETTINGS
//
// MODULES is the folder node_modules, SETTINGS a JSON file: port, issuer, mount, certificate and key (files), tokenLifeS,
// initialAccessToken (for RFC 7591's registration), resources (a scope `RESOURCE/.default` asks for one of them),
// audience (of tokens that are asked for without such a scope), claims (by client id, put into its tokens).
import crypto from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:https";

const [modules, file] = process.argv.slice(2);
const settings = JSON.parse(readFileSync(file, "utf8"));
const { default: Provider, errors } = await import(`${modules}/oidc-provider/lib/index.js`);

const { privateKey } = crypto.generateKeyPairSync("rsa", { modulusLength: 2048 });
const DEFAULT = "/.default";

const provider = new Provider(settings.issuer, {
  jwks: { keys: [{ ...privateKey.export({ format: "jwk" }), alg: "RS256", use: "sig", kid: crypto.randomUUID() }] },
  clientAuthMethods: ["client_secret_basic", "client_secret_post", "private_key_jwt"],
  cookies: { keys: [crypto.randomUUID()] },
  responseTypes: ["none"],
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    registration: {
      enabled: true,
      initialAccessToken: settings.initialAccessToken,
      idFactory: () => crypto.randomUUID(),
    },
    registrationManagement: { enabled: true },
    resourceIndicators: {
      enabled: true,
      // Entra's clients ask by the scope, as Entra wants it, and not by RFC 8707's parameter.
      defaultResource(ctx) {
        const scope = ctx.oidc.params.scope ?? "";
        return scope.endsWith(DEFAULT) ? scope.slice(0, -DEFAULT.length) : settings.audience;
      },
      getResourceServerInfo(ctx, resource) {
        if (![...settings.resources, settings.audience].includes(resource)) throw new errors.InvalidTarget();
        return {
          scope: `${resource}${DEFAULT}`,
          audience: resource,
          accessTokenFormat: "jwt",
          accessTokenTTL: settings.tokenLifeS,
          jwt: { sign: { alg: "RS256" } },
        };
      },
    },
  },
  extraTokenClaims: (ctx, token) => ({
    ...settings.claims,
    appid: token.clientId,
    oid: token.clientId,
    uti: crypto.randomBytes(16).toString("base64url"),
    nbf: Math.floor(Date.now() / 1000), // Azurite wants one
  }),
});

const serve = provider.callback();
const tls = { cert: readFileSync(settings.certificate), key: readFileSync(settings.key) };
createServer(tls, (request, response) => {
  if (!request.url.startsWith(`${settings.mount}/`)) {
    response.writeHead(404).end();
    return;
  }
  request.originalUrl = request.url; // where it is mounted is seen from this
  request.url = request.url.slice(settings.mount.length);
  serve(request, response);
}).listen(settings.port, "127.0.0.1");
