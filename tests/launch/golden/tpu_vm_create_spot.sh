gcloud compute tpus queued-resources create run1 --accelerator-type=v5p-128 --runtime-version=v2-alpha-tpuv5 --node-id=run1 --spot --valid-until-duration=6h --zone=us-west4-a --project=mine
