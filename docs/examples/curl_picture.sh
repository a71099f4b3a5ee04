#!/bin/sh
# A picture for a vision model, as bare base64.  curl_picture.sh MODEL FILE
set -eu
[ $# -eq 2 ] && [ -r "$2" ] || { echo "usage: curl_picture.sh MODEL FILE" >&2; exit 2; }
url=${OPENAI_BASE_URL:-http://127.0.0.1:8000/v1}
{
  printf '{"model": "%s", "messages": [{"role": "user", "content": [' "$1"
  printf '{"type": "text", "text": "What do you see?"}, {"type": "image_base64", "image_base64": "'
  base64 <"$2" | tr -d '\n'
  printf '"}]}]}'
} | curl -sS --fail-with-body "$url/chat/completions" \
  -H "Authorization: Bearer ${OPENAI_API_KEY:-none}" -H 'Content-Type: application/json' --data-binary @-
echo
