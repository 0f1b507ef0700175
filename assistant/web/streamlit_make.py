"""The tab that makes an assistant; where the page may not or cannot, it says what one's own machine can."""

import os

import streamlit as st

from assistant.web.permission import can_train, may_train
from assistant.web.streamlit_parts import server_address, texts_now


def make_tab() -> None:
    texts = texts_now()
    if not (may_train(os.environ, server_address()) and can_train()):
        st.markdown(texts["make_off"])
        return
    from assistant.web.streamlit_making import workshop  # a published page has no use for it

    workshop(texts)
