gcloud compute tpus queued-resources create run1 --accelerator-type=v6e-256 --runtime-version=v2-alpha-tpuv6e --node-count=4 --node-prefix=run1 --reserved --zone=us-west4-a --project=mine
