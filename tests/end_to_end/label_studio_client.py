"""Does what a user of Label Studio does, with Label Studio's own package; runs in the environment of Label Studio.

label_studio_client.py token URL USER PASSWORD: prints a personal token of that user.
label_studio_client.py check: reads predictions and masks from stdin and prints the errors that Label Studio finds.
label_studio_client.py predict URL TOKEN MODEL PASSWORD CONFIG PLACE...: creates a project with these pictures, of which
files are uploaded, connects the model, retrieves predictions and prints those of each task.
"""

import json
import sys
from pathlib import Path

import numpy as np
import requests
from label_studio_sdk import LabelStudio
from label_studio_sdk.converter import brush
from label_studio_sdk.label_interface import LabelInterface


def token(url: str, user: str, password: str) -> str:
    session = requests.Session()
    session.get(f"{url}/user/login/")
    form = {"email": user, "password": password, "csrfmiddlewaretoken": session.cookies["csrftoken"]}
    session.post(f"{url}/user/login/", data=form, headers={"Referer": url}).raise_for_status()
    headers = {"X-CSRFToken": session.cookies["csrftoken"], "Referer": url}
    return session.post(f"{url}/api/token/", json={}, headers=headers).json()["token"]


def check() -> list[str]:
    given = json.load(sys.stdin)
    wrong = LabelInterface(given["config"]).validate_prediction(given["prediction"], return_errors=True)
    for code, rows in zip(given["codes"], given["masks"], strict=True):
        mask = np.array(rows, np.uint8) * 255
        decoded = brush.decode_rle(code).reshape(*mask.shape, 4)
        if not (decoded == mask[..., None]).all():
            wrong.append(f"a mask of {mask.shape} is not what was encoded")
        theirs = brush.mask2rle(mask)  # may have one more byte at the end
        if theirs[: len(code)] != code or len(theirs) > len(code) + 1:
            wrong.append(f"a mask of {mask.shape} is encoded otherwise")
    return wrong


def predict(url: str, personal: str, model: str, password: str, config: str, *places: str) -> list[object]:
    studio = LabelStudio(base_url=url, api_key=personal)
    project = studio.projects.create(title="digits", label_config=config).id
    access = requests.post(f"{url}/api/token/refresh", json={"refresh": personal}).json()["access"]
    for place in places:
        if place.startswith("/"):
            requests.post(
                f"{url}/api/projects/{project}/import",
                files={"file": (Path(place).name, Path(place).read_bytes(), "image/jpeg")},
                headers={"Authorization": f"Bearer {access}"},
            ).raise_for_status()
        else:
            studio.projects.import_tasks(project, request=[{"image": place}])
    studio.ml.create(
        url=model,
        project=project,
        title="rcnn",
        auth_method="BASIC_AUTH",
        basic_auth_user="any",
        basic_auth_pass=password,
    )
    everything = {"all": True, "excluded": []}
    studio.actions.create(id="retrieve_tasks_predictions", project=project, selected_items=everything)
    tasks = sorted(task.id for task in studio.tasks.list(project=project))
    answered = [studio.predictions.list(task=task) for task in tasks]
    return [[[each.model_version, each.score, each.result] for each in found] for found in answered]


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    print(json.dumps({"token": token, "check": check, "predict": predict}[command](*arguments)))
