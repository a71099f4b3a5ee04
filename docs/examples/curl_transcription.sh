#!/bin/sh
# The words of a recording: as a form, and as JSON.  curl_transcription.sh MODEL FILE
set -eu
[ $# -eq 2 ] && [ -r "$2" ] || { echo "usage: curl_transcription.sh MODEL FILE" >&2; exit 2; }
url=${OPENAI_BASE_URL:-http://127.0.0.1:8000/v1}
key=${OPENAI_API_KEY:-none}
curl -sS --fail-with-body "$url/audio/transcriptions" -H "Authorization: Bearer $key" -F "model=$1" -F "file=@$2"
echo
{
  printf '{"model": "%s", "audio_base64": "' "$1"
  base64 <"$2" | tr -d '\n'
  printf '"}'
} | curl -sS --fail-with-body "$url/audio/transcriptions" \
  -H "Authorization: Bearer $key" -H 'Content-Type: application/json' --data-binary @-
echo
