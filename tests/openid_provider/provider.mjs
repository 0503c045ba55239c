// A certified OpenID provider with its own pages for signing in, which take any name. Arguments: port, redirect URI.
// People whose name begins with `ops` are in the group `platform`, others in `staff`.
import { Provider } from 'oidc-provider';

const [port, redirectUri] = process.argv.slice(2);
const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [{
    client_id: 'loraplex',
    client_secret: 'a-secret-of-the-client-that-is-long-enough',
    redirect_uris: [redirectUri],
    response_types: ['code'],
    grant_types: ['authorization_code'],
    id_token_signed_response_alg: 'RS256',
  }],
  claims: { openid: ['sub'], profile: ['preferred_username', 'groups'], email: ['email', 'email_verified'] },
  pkce: { required: () => true },
  cookies: { keys: ['for tests alone'] },
  async findAccount(_, id) {
    const groups = id.startsWith('ops') ? ['platform'] : ['staff'];
    const claims = { sub: id, preferred_username: id, groups, email: `${id}@example.com`, email_verified: true };
    return { accountId: id, claims: () => claims };
  },
});
provider.listen(Number(port), '127.0.0.1', () => console.log("listening"));
