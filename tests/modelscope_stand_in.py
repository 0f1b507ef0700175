"""A stand-in of ModelScope's two APIs for uploads, beside Hugging Face's; large files go the same way."""

import base64
import json
from typing import Any

from hub_stand_in import Handler, Repo

LEGACY, OPEN = "/api/v1/", "/openapi/v1/"


class ModelScopeHandler(Handler):
    def reply_to(self, path: str, body: bytes, role: str) -> tuple[Any, ...]:
        sent = json.loads(body) if body else {}
        if path.startswith(OPEN):
            status, data = self.open_reply(path.removeprefix(OPEN).split("/"), sent)
        else:
            status, data = self.legacy_reply(path.removeprefix(LEGACY).split("/"), sent)
        return (status, {"Code": 200, "Success": True, "Data": data}) if status == 200 else (status, data)

    def open_reply(self, parts: list[str], sent: dict[str, Any]) -> tuple[int, Any]:
        repos = self.server.hub.repos
        if parts == ["users", "me"]:
            return 200, {"username": "ada"}
        if parts == ["studios"]:
            key = f"studios/{sent['owner']}/{sent['repo_name']}"
            if key in repos:
                return 400, {"code": "DuplicateEntity", "message": "studio exists"}
            repos[key] = Repo(sent["sdk_type"], sent.get("hardware"), sent["private"])
            return 200, {"id": key.removeprefix("studios/")}
        key = "/".join(parts[:3])
        if key not in repos:
            return 404, {"code": "ResourceNotFound", "message": "not found"}
        return 200, {"sdk_type": repos[key].sdk, "owner": parts[1], "name": parts[2]}

    def legacy_reply(self, parts: list[str], sent: dict[str, Any]) -> tuple[int, Any]:
        repos = self.server.hub.repos
        if parts == ["models"]:
            key = f"models/{sent['Path']}/{sent['Name']}"
            if key in repos:
                return 400, {"Code": 10010101001, "Message": "model already exists"}
            repos[key] = Repo(private=sent["Visibility"] == 1)
            return 200, {"Path": sent["Path"], "Name": sent["Name"]}
        repo = repos["/".join(parts[-5:-2] if parts[-2] == "repo" else parts[1:4])]
        if parts[-1] == "batch":
            return 200, {"objects": [self.wanted(e) for e in sent["objects"] if "actions" in self.wanted(e)]}
        if parts[-1] == "files":
            return 200, {"Files": [{"Path": path, "Type": "blob"} for path in repo.content]}
        for action in sent["actions"]:
            is_large = action["type"] == "lfs"
            content = (
                self.server.hub.large[action["sha256"]] if is_large else base64.b64decode(action["content"])
            )
            repo.content[action["path"]] = content
        return 200, {"CommitId": "1" * 40}
