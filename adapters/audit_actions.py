"""Everything that the audit log can say was done: the name of each action, and what it means to people. Data only.

The part before the dot is what the action is done to. A change that is not listed here cannot be recorded.
"""

from __future__ import annotations

from collections.abc import Mapping

ACTIONS: Mapping[str, str] = {
    "account.create": "Account created",
    "account.disable": "Account disabled",
    "account.enable": "Account enabled",
    "account.lock_out": "Account locked after failed sign-ins",
    "account.login": "Signed in",
    "account.login_fail": "Sign-in failed",
    "account.logout": "Signed out",
    "account.logout_everywhere": "Signed out everywhere",
    "account.password": "Password changed",
    "account.role": "Role changed",
    "adapter.create": "Adapter created",
    "adapter.delete": "Adapter deleted",
    "alias.delete": "Alias deleted",
    "alias.move": "Alias moved",
    "alias.roll_back": "Alias rolled back",
    "batch.cancel": "Batch cancelled",
    "batch.create": "Batch created",
    "contents.delete": "Kept contents of requests deleted",
    "file.create": "File uploaded",
    "file.delete": "File deleted",
    "import.cancel": "Import cancelled",
    "import.create": "Import created",
    "key.change": "API key changed",
    "key.create": "API key created",
    "key.end_old_secret": "Old secret of an API key ended",
    "key.limits": "API key limited",
    "key.revoke": "API key revoked",
    "key.rotate": "API key rotated",
    "prices.set": "Prices set",
    "profile.clear": "Serving profile cleared",
    "profile.set": "Serving profile set",
    "response.delete": "Stored response deleted",
    "tenant.contents": "Tenant's contents kept or not",
    "tenant.create": "Tenant created",
    "tenant.limits": "Tenant limited",
    "tenant.resume": "Tenant resumed",
    "tenant.suspend": "Tenant suspended",
    "upload.drop": "Upload dropped",
    "upload.open": "Upload announced",
    "version.delete": "Version deleted",
    "version.evict": "Version evicted from memory",
    "version.pin": "Version pinned",
    "version.publish": "Version published",
    "version.quarantine": "Version quarantined",
    "version.release": "Version released from quarantine",
    "version.settle": "Version validated",
    "version.unpin": "Version unpinned",
    "version.warm": "Version loaded ahead",
}
