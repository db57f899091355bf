gcloud compute tpus queued-resources create run1 --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --node-id=run1 --zone=us-west4-a --project=mine
