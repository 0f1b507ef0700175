"""Makes a model's repository on OpenXLab; run by the Python that has `openxlab`, AK and SK in its variables.

Its own `model create` would send the weights a second time, and reports each call to its maker.
"""

import os
import sys


def main(name: str, metafile: str, is_private: bool) -> None:
    from openxlab.model.clients.openapi_client import OpenapiClient
    from openxlab.model.common import constants
    from openxlab.model.common.meta_file_util import MetafileParser
    from openxlab.xlab.handler import user_token

    place = os.environ.get("OPENXLAB_API", constants.endpoint)
    user_token.AUTH_CLIENT.endpoint = f"{place}/sso-be/api/v1/open/"
    try:
        OpenapiClient(place).create_repository(
            name, is_private, MetafileParser(metafile).parse_and_validate()
        )
    except (ValueError, OSError) as error:
        sys.exit(" ".join(str(error).split())[:300])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3] == "1")
