"""Makes a model's repository on OpenXLab; run by the Python that has `openxlab`, AK and SK in its variables.

Its own `model create` would send the weights a second time, and reports each call to its maker.
"""

import os
import sys
from typing import Any

KEYS_PAGE = "https://sso.openxlab.org.cn/usercenter?tab=secret"


def main(name: str, metafile: str, is_private: bool) -> None:
    from openxlab.model.clients.openapi_client import OpenapiClient
    from openxlab.model.common import constants
    from openxlab.model.common.meta_file_util import MetafileParser
    from openxlab.xlab.handler import user_token
    from requests import ConnectionError, HTTPError, RequestException

    place = os.environ.get("OPENXLAB_API", "").rstrip("/") or constants.endpoint
    user_token.AUTH_CLIENT.endpoint = f"{place}/sso-be/api/v1/open/"
    try:
        log_in(user_token)
        content = MetafileParser(metafile).parse_and_validate()
        OpenapiClient(place).create_repository(name, is_private, content)
    except HTTPError as error:
        sys.exit(f"{place} refuses: {in_one_line(error)}")
    except ConnectionError as error:
        sys.exit(f"{place} cannot be reached: {in_one_line(error)}")
    except RequestException as error:
        sys.exit(f"{place} does not answer as its SDK expects: {in_one_line(error)}")
    except ValueError as error:
        sys.exit(in_one_line(error))
    except (TypeError, KeyError) as error:  # what the package makes of an answer in another form
        sys.exit(f"{place} answered in a form that its SDK does not know: {in_one_line(error)}")


def log_in(user_token: Any) -> None:
    """Ask for the token that the package would go on without, so that the answer hides why it failed."""
    from requests import RequestException

    try:
        user_token.get_token()
    except RequestException:
        raise
    except ValueError as error:
        said = str(error).rpartition("message: ")[2]  # before it stand AK and what SK signed
        raise ValueError(
            f"it does not accept OPENXLAB_AK and OPENXLAB_SK ({said}); make a pair at {KEYS_PAGE}"
        ) from None


def in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3] == "1")
