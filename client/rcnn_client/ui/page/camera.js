// Shows the camera in a video element until a picture is taken.

const video = document.getElementById("video");
const buttons = Object.fromEntries(["camera", "take", "close-camera"].map((id) => [id, document.getElementById(id)]));

// `onPicture` gets a JPEG; `onError` a sentence; `onToggle` whether the camera is open.
export function setUpCamera(onPicture, onError, onToggle) {
  if (!navigator.mediaDevices) { // without TLS, pages of other hosts cannot use it; phones still offer it as a file
    buttons.camera.hidden = true;
    return;
  }

  const toggle = (isOpen) => {
    video.hidden = buttons.take.hidden = buttons["close-camera"].hidden = !isOpen;
    buttons.camera.hidden = isOpen;
    onToggle(isOpen);
  };
  const close = () => {
    video.srcObject?.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
    toggle(false);
    buttons.camera.focus();
  };

  buttons.camera.addEventListener("click", async () => {
    try {
      const wanted = { facingMode: "environment", width: { ideal: 1920 } };
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: wanted });
      await video.play();
      toggle(true);
      buttons.take.focus();
    } catch (error) {
      onError(`The camera cannot be opened: ${error.message}`);
    }
  });
  buttons["close-camera"].addEventListener("click", close);
  buttons.take.addEventListener("click", () => {
    const still = document.createElement("canvas");
    still.width = video.videoWidth;
    still.height = video.videoHeight;
    still.getContext("2d").drawImage(video, 0, 0);
    close();
    still.toBlob((blob) => onPicture(new File([blob], "camera.jpg", { type: blob.type })), "image/jpeg", 0.95);
  });
}
